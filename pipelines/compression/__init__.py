"""A model as a lossless compressor."""
