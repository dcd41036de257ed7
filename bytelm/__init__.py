"""One MEGABYTE model on the raw bytes of images, audio and text."""

__version__ = "0.1.0"
