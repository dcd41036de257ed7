"""Bits per byte of a model, and of codecs on the same bytes."""

SCORINGS = PLAIN, SLIDING, STRIDED, BOTH = ("plain", "sliding", "strided", "both")
"""How a document is cut into windows, see `windows.py`. The names are defined here so that the
command line can list them without importing torch."""
ADAPT = "adapt"
"""The scoring of `--adapt`, see `document_scoring.py`."""
CHUNK = 2048
"""Bytes of a chunk that codecs compress as a file, as in arXiv:2309.10668."""
