"""The command `bytelm`, one file for each of its commands."""
