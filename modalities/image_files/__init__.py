"""Decoding of image files: a file a format, and what they share."""
