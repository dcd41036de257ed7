"""The command `bytelm`: one file a command."""
