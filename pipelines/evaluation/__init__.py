"""Bits per byte of a model, and of codecs beside it."""
