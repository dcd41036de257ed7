"""Detection of a file's modality from its first bytes."""

from __future__ import annotations

from bytelm.modalities import BY_CODE

START_BYTES = 4096
"""Bytes of a file that detection reads."""
UNKNOWN_KIND = ("unknown kind", "no image, no sound, no text")
"""Reason and detail for a file of no modality."""


def modality_of(start: bytes) -> str | None:
    """The name of the modality of a file that begins with `start`, its first START_BYTES.

    None where no modality recognises it.
    """
    for modality in reversed(BY_CODE):  # text, which takes most bytes, is asked last
        if modality.recognises(start):
            return modality.name
    return None
