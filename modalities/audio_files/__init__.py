"""Decoding of sound files: a file a format, and what they share."""
