"""Where payloads lie in a row of ids, and where pixels, lines and frames lie in a payload.

A segment of the stream opens with an id that names its modality and a header of some bytes; both
say how to read the payload after them. This package imports no modality, so the constants of the
stream stand here again, and a test compares them.

Shapes:
    P   ids in a patch    J = FEATURES, the codec features of an id
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from torch import Tensor

Number = TypeVar("Number", int, Tensor)
"""One whole number, or a tensor of them."""

TEXT, IMAGE, AUDIO = 259, 260, 261
"""The ids that open a segment."""
OPENING_LENGTHS = {TEXT: 6, IMAGE: 11, AUDIO: 11}
"""Ids of a segment's opening: the opener and its header. A header ends with a view of one byte and
an offset of four; those of images and audio begin with four bytes by modality and the channels."""
PAD = 256
RASTER, PLANAR, DEEP, S16BE = 0, 1, 3, 1
"""Header codes of the views that are read as pixels and as samples."""

NONE = -1
"""A feature that an id does not have."""
MATCH_LENGTHS = (4, 6, 8)
"""Bytes that agree in each kind of match; the longest fill a number of 64 bits."""
PREDICTIONS = 8
"""The first columns of the features: predictions of a byte of a pixel or a sample."""
PHASE = PREDICTIONS
"""The column of the byte's position in its pixel or frame; NONE in all other payloads."""
MATCHES = PHASE + 1
"""The first column of the match candidates; after them come the lengths of their runs."""
FEATURES = MATCHES + 2 * len(MATCH_LENGTHS)


def preamble_patches(opener: int, patch: int) -> int:
    """Patches that the opening of a segment takes."""
    return -(-OPENING_LENGTHS[opener] // patch)


class OpenSegment(NamedTuple):
    """The segment that a row is in, by patch indices, which are -1 where it has no payload.

    Only patches that open with an id above 255 change it. Such a patch opens the next segment or
    ends the payload; its ids still count as payload, since its first id is not known before it.
    """

    opened: int = -1
    """The patch that opened it."""
    padding: int = -1
    """The patch after the opening."""
    begin: int = -1
    """The first patch of the payload. Patches of PAD lie before it in rows that were framed for a
    larger patch than the model's."""

    def after(self, index: int, first: int, patch: int) -> OpenSegment:
        """The segment that the row is in once patch `index` has opened with the id `first`."""
        if first < PAD:
            return self
        if first == PAD and index == self.begin:
            return self._replace(begin=index + 1)
        if first not in OPENING_LENGTHS:
            return OpenSegment(opened=index)
        behind = index + preamble_patches(first, patch)
        return OpenSegment(index, behind, behind)

    def is_padding(self, index: int) -> bool:
        """Whether patch `index` lies between the opening and the payload."""
        return self.padding <= index < self.begin


@dataclass(frozen=True)
class PayloadLayout:
    """How the bytes of a payload are read."""

    kind: Literal["bytes", "image", "audio"]
    unit: int = 1
    """Bytes of a pixel or of a frame (a sample of each channel)."""
    line: int = 0
    """Bytes of an image's line."""
    phase: int = 0
    """Position in its unit of the first payload byte present in the row."""

    @classmethod
    def from_opening(cls, ids: list[int]) -> PayloadLayout:
        """Layout from the opening of a segment; "bytes" where the header is broken or says no more.

        ids: as many as OPENING_LENGTHS gives for the first of them.
        """
        if ids[0] == TEXT or max(ids[1:]) > 255:
            return cls("bytes")
        opener, high, low, _, _, channels, view, *offset = ids
        width, skipped = 256 * high + low, int.from_bytes(offset, "big")
        if opener == IMAGE and view in (RASTER, PLANAR, DEEP) and width > 1 and channels:
            unit = {RASTER: channels, PLANAR: 1, DEEP: 2 * channels}[view]
            return cls("image", unit, width * unit, skipped % unit)
        if opener == AUDIO and view == S16BE and channels:
            return cls("audio", 2 * channels, 0, skipped % (2 * channels))
        return cls("bytes")

    @property
    def leading(self) -> int:
        """Bytes of an audio payload before its first whole sample: 0 or 1."""
        return self.phase % 2

    def phase_at(self, index: Number) -> Number:
        """Position in its unit of payload byte `index`."""
        return (index + self.phase) % self.unit
