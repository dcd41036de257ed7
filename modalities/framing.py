"""The stream: how segments and documents become ids, and how ids are read back.

A segment is a preamble (SOM and header, padded to a whole patch) and a body (payload, EOM, and
PAD to the next patch); a document is one or more segments, and EOD follows the last EOM. The
body always has room for both EOM and EOD, so a document's length does not depend on the order
of its segments. A document that does not fit is cut on patch boundaries, and every further
piece opens with the preamble of the segment it goes on with, at the piece's own offset.

    L ids in a row      P ids in a patch      n payload bytes of a segment
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bytelm.modalities import BY_CODE, BY_SOM
from bytelm.modalities.base import Bytes, Header, Modality

PAD = 256
EOM = 257
EOD = 258
SOM_TEXT = 259
SOM_IMAGE = 260
SOM_AUDIO = 261
VOCAB_SIZE = 264
MAX_ENDS = 2  # EOM and EOD

Length = TypeVar("Length", int, npt.NDArray[np.int64])


@dataclass(frozen=True)
class Segment:
    """A segment as the stream sees it, before its payload is read."""

    modality: Modality
    header: Header
    view: str
    size: int
    """Payload bytes, whole."""


@dataclass(frozen=True)
class Span:
    """The part of one segment that a piece holds: body ids [start, start + length)."""

    segment: int
    """Ordinal in the document."""
    start: int
    length: int
    """A multiple of the patch."""


@dataclass
class Framed:
    """The ids of a piece or a row, and what is known of each; every array is [n]."""

    ids: npt.NDArray[np.uint16]
    modality: npt.NDArray[np.uint8]
    """The modality's code; 0 on filler."""
    scored: npt.NDArray[np.bool_]
    """False on PAD and on the preambles of further pieces."""
    payload: npt.NDArray[np.bool_]
    """True on payload bytes."""

    @classmethod
    def filler(cls, length: int) -> Framed:
        """`length` ids of PAD, nothing scored."""
        return cls(
            ids=np.full(length, PAD, np.uint16),
            modality=np.zeros(length, np.uint8),
            scored=np.zeros(length, np.bool_),
            payload=np.zeros(length, np.bool_),
        )


@dataclass(frozen=True)
class ParsedSegment:
    """A segment (or the part of it that follows) found in a row of ids."""

    modality: Modality
    header: Header
    view: str
    offset: int
    """Where its payload begins, in payload bytes."""
    preamble: slice
    """SOM and header, without the padding."""
    payload: slice
    ends: slice
    """EOM and EOD, as far as they are there."""


def up_to_patch(length: Length, patch: int) -> Length:
    """The next multiple of the patch; works on arrays too."""
    return -(-length // patch) * patch


def preamble_length(modality: Modality, patch: int) -> int:
    """Ids of a preamble: SOM and header, padded to a whole patch."""
    return up_to_patch(1 + modality.header_size, patch)


def body_length(size: Length, patch: int) -> Length:
    """Ids of a body: `size` payload bytes, room for EOM and EOD, padded; works on arrays too."""
    return up_to_patch(size + MAX_ENDS, patch)


def min_row_length(patch: int) -> int:
    """The shortest row that can hold a piece of any segment: a preamble and one patch."""
    return max(preamble_length(m, patch) for m in BY_CODE) + patch


def cut(
    segments: Sequence[tuple[Modality, int]],
    patch: int,
    room: Callable[[], int],
    segment: int = 0,
    start: int = 0,
) -> Iterator[list[Span]]:
    """Cut a document into pieces.

    Args:
        segments: modality and payload size of each segment.
        patch: P.
        room: gives the ids that the next piece may take, a multiple of P; called for one piece
            at a time. A room too small for a preamble and a patch gives an empty piece.
        segment, start: where the first piece begins: ordinal of the segment, id of its body.
    Yields:
        the spans of each piece.
    """
    while segment < len(segments):
        left = room()
        spans: list[Span] = []
        while segment < len(segments):
            modality, size = segments[segment]
            opening = preamble_length(modality, patch)
            if left < opening + patch:
                break
            length = min(left - opening, body_length(size, patch) - start)
            spans.append(Span(segment, start, length))
            left -= opening + length
            start += length
            if start == body_length(size, patch):
                segment, start = segment + 1, 0
        yield spans


def piece_length(
    spans: Sequence[Span], segments: Sequence[tuple[Modality, int]], patch: int
) -> int:
    """Ids of a piece."""
    return sum(preamble_length(segments[s.segment][0], patch) + s.length for s in spans)


def frame(
    spans: Sequence[Span],
    segments: Sequence[Segment],
    payload: Callable[[int, int, int], Bytes],
    patch: int,
) -> Framed:
    """The ids of one piece.

    Args:
        spans: what the piece holds, as `cut` gave it.
        segments: all segments of the document.
        payload: payload(segment, start, stop) gives those payload bytes of a segment.
        patch: P.
    """
    length = piece_length(spans, [(s.modality, s.size) for s in segments], patch)
    framed = Framed.filler(length)
    at = 0
    for span in spans:
        segment = segments[span.segment]
        opening = preamble_length(segment.modality, patch)
        packed = segment.modality.pack_header(
            segment.header, segment.view, min(span.start, segment.size)
        )
        header_end = at + 1 + len(packed)
        framed.ids[at] = segment.modality.som
        framed.ids[at + 1 : header_end] = np.frombuffer(packed, np.uint8)
        framed.scored[at:header_end] = span.start == 0
        framed.modality[at : at + opening + span.length] = segment.modality.code

        at += opening
        stop = min(span.start + span.length, segment.size)
        size = max(0, stop - span.start)
        framed.ids[at : at + size] = payload(span.segment, span.start, stop) if size else 0
        framed.payload[at : at + size] = True

        ends = [EOM, EOD] if span.segment == len(segments) - 1 else [EOM]
        first = max(0, span.start - segment.size)
        last = min(len(ends), span.start + span.length - segment.size)
        for place in range(first, last):
            framed.ids[at + segment.size - span.start + place] = ends[place]
        framed.scored[at : at + size + max(0, last - first)] = True
        at += span.length
    assert at == length
    return framed


def preamble(
    modality: Modality, header: Header, view: str, offset: int, patch: int
) -> npt.NDArray[np.uint16]:
    """The ids of a preamble, padded to a whole patch."""
    ids = np.full(preamble_length(modality, patch), PAD, np.uint16)
    packed = modality.pack_header(header, view, offset)
    ids[0] = modality.som
    ids[1 : 1 + len(packed)] = np.frombuffer(packed, np.uint8)
    return ids


def parse(ids: npt.NDArray[np.integer], patch: int) -> Iterator[ParsedSegment]:
    """Find the segments in a row of ids.

    A payload goes on to the first special id after its preamble, or to the end of the row.
    Raises ValueError where a preamble is broken (a header cut off, a special id inside it, a
    view that does not exist).
    """
    special = np.flatnonzero(ids >= PAD)
    at = 0
    while at < len(ids):
        modality = BY_SOM.get(int(ids[at]))
        if modality is None:
            if ids[at] != PAD:
                raise ValueError(f"id {ids[at]} at {at} where a segment or filler should begin")
            at += patch
            continue
        header_end = at + 1 + modality.header_size
        packed = ids[at + 1 : header_end]
        if len(packed) < modality.header_size or (packed >= PAD).any():
            raise ValueError(f"the header of the {modality.name} segment at {at} is broken")
        header, view, offset = modality.unpack_header(packed.astype(np.uint8).tobytes())
        begin = at + preamble_length(modality, patch)
        place = int(np.searchsorted(special, begin))
        stop = int(special[place]) if place < len(special) else len(ids)
        ends_stop = stop
        while ends_stop < min(len(ids), stop + MAX_ENDS) and ids[ends_stop] in (EOM, EOD):
            ends_stop += 1
        yield ParsedSegment(
            modality=modality,
            header=header,
            view=view,
            offset=offset,
            preamble=slice(at, header_end),
            payload=slice(begin, max(begin, stop)),
            ends=slice(stop, ends_stop),
        )
        at = up_to_patch(max(ends_stop, begin + 1), patch)


def unframe(
    ids: npt.NDArray[np.integer], patch: int
) -> list[tuple[Modality, Header, str, int, Bytes]]:
    """The (modality, header, view, payload offset, payload) of every segment in a row of ids."""
    return [
        (s.modality, s.header, s.view, s.offset, ids[s.payload].astype(np.uint8))
        for s in parse(ids, patch)
    ]
