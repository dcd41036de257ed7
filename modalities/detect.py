"""The modality of a file, from its first bytes."""

from __future__ import annotations

from bytelm.modalities import MODALITIES

START_BYTES = 4096
UNKNOWN_KIND = ("unknown kind", "no image, no sound, no text")


def modality_of(start: bytes) -> str | None:
    """The modality that the first START_BYTES of a file show."""
    for modality in reversed(MODALITIES.values()):  # text is asked last
        if modality.recognises(start):
            return modality.name
    return None
