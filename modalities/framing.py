"""The stream format: how segments and documents become ids, and how ids are parsed.

A segment is a preamble (SOM and header, padded to a whole patch) and a body (payload, EOM, and
PAD to the next patch). A document is one or more segments, and EOD follows its last EOM. A body
always has room for both EOM and EOD, so a document's length does not depend on the order of its
segments. A document that does not fit into a row is split on patch boundaries into pieces; each
further piece opens with the preamble of the segment that it continues, at the piece's own offset.

`write_row` writes a whole row at once from the columns of its spans. The loader, `frame` and the
compressor all go through it.

    L ids in a row    P ids in a patch    S spans in a row
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bytelm.modalities import BY_CODE, BY_SOM
from bytelm.modalities.base import Bytes, Header, Modality

PAD = 256
EOM = 257
EOD = 258
VOCAB_SIZE = 264
"""256 bytes, PAD, EOM, EOD, `Modality.som` of each modality from 259 on, and two spare ids."""
MAX_ENDS = 2  # EOM and EOD

UNSCORED, FRAME, PAYLOAD = 0, 1, 2
"""Roles of an id: not scored (PAD, and preambles of further pieces), scored framing (SOM, header,
EOM, EOD), and payload byte."""
PADDING_DOCUMENT = -1
"""Document number of patches that belong to no document."""

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Length = TypeVar("Length", int, Ints)

_HEADER_TYPES = {"width": np.uint16, "height": np.uint16, "channels": np.uint8, "rate": np.uint32}


@dataclass(frozen=True)
class Segment:
    """One segment of a document: everything about it but its payload."""

    modality: Modality
    header: Header
    view: str
    size: int
    """Payload bytes of the whole segment."""


@dataclass(frozen=True)
class Span:
    """The part of one segment that a piece holds: body ids [start, start + length)."""

    segment: int
    """Ordinal in the document."""
    start: int
    length: int
    """A multiple of the patch."""


@dataclass(frozen=True)
class RowSpans:
    """The spans of one row in the order of their positions, as columns; every array is [S]."""

    modality: Bytes
    """Code of the segment's modality."""
    view: Bytes
    """Code of the segment's view."""
    headers: Mapping[str, npt.NDArray[np.integer]]
    """Values of each field of `Header`."""
    size: Ints
    """Payload bytes of the whole segment."""
    start: Ints
    """First body id."""
    length: Ints
    """Body ids, a multiple of the patch."""
    document: Ints
    """Ordinal in the row of the document, or of the piece of one, that the span belongs to."""
    is_last: Bools
    """Whether the segment is the last of its document."""

    @property
    def payload_start(self) -> Ints:
        """First payload byte of each span."""
        return np.minimum(self.start, self.size)

    @property
    def payload_stop(self) -> Ints:
        """End of each span's payload bytes."""
        return np.minimum(self.start + self.length, self.size)

    def total_length(self, patch: int) -> int:
        """Ids of all spans with their preambles."""
        return int((preamble_lengths(self.modality, patch) + self.length).sum())


@dataclass
class Framed:
    """Framed ids of a piece or a row, and the role and origin of each."""

    ids: npt.NDArray[np.uint16]
    """[L]."""
    role: Bytes
    """[L] UNSCORED, FRAME or PAYLOAD."""
    patch_modality: Bytes
    """[L/P] code of the modality; 0 on padding."""
    document: npt.NDArray[np.int32]
    """[L/P] ordinal of the document in the row; PADDING_DOCUMENT on padding."""
    patch: int
    """P."""

    @classmethod
    def padding(cls, length: int, patch: int) -> Framed:
        """A row of `length` ids of PAD."""
        patches = length // patch
        return cls(
            ids=np.full(length, PAD, np.uint16),
            role=np.full(length, UNSCORED, np.uint8),
            patch_modality=np.zeros(patches, np.uint8),
            document=np.full(patches, PADDING_DOCUMENT, np.int32),
            patch=patch,
        )

    def pad_from(self, patches: int) -> None:
        """Turn everything after the first `patches` patches into padding."""
        self.ids[patches * self.patch :] = PAD
        self.role[patches * self.patch :] = UNSCORED
        self.patch_modality[patches:] = 0
        self.document[patches:] = PADDING_DOCUMENT

    @property
    def modality(self) -> Bytes:
        """[L] code of the modality; 0 on padding."""
        return self.patch_modality.repeat(self.patch)

    @property
    def scored(self) -> Bools:
        """[L] whether the loss counts an id."""
        return self.role != UNSCORED

    @property
    def payload(self) -> Bools:
        """[L] whether an id is a payload byte."""
        return self.role == PAYLOAD


@dataclass(frozen=True)
class ParsedSegment:
    """A segment, or the part of one that a piece holds, found in a row of ids."""

    modality: Modality
    header: Header
    view: str
    offset: int
    """Payload bytes of the segment before this part."""
    preamble: slice
    """Positions of SOM and header, without the padding."""
    payload: slice
    ends: slice
    """Positions of EOM and EOD; empty where the segment continues in another piece."""


# --- lengths ---


def up_to_patch(length: Length, patch: int) -> Length:
    """The next multiple of the patch; works on arrays too."""
    return -(-length // patch) * patch


def preamble_length(modality: Modality, patch: int) -> int:
    """Ids of a preamble: SOM and header, padded to a whole patch."""
    return up_to_patch(1 + modality.header_size, patch)


@lru_cache
def _preamble_lengths_by_code(patch: int) -> Ints:
    return np.array([preamble_length(modality, patch) for modality in BY_CODE])


def preamble_lengths(codes: Bytes, patch: int) -> Ints:
    """Ids of the preamble of each of an array of modality codes."""
    return _preamble_lengths_by_code(patch)[codes]


def body_length(size: Length, patch: int) -> Length:
    """Ids of a body: `size` payload bytes, room for EOM and EOD, padded; works on arrays too."""
    return up_to_patch(size + MAX_ENDS, patch)


def min_row_length(patch: int) -> int:
    """Length of the shortest row that holds a piece of any segment: a preamble and one patch."""
    return max(preamble_length(modality, patch) for modality in BY_CODE) + patch


def split_document(
    segments: Sequence[tuple[Modality, int]],
    patch: int,
    room: Callable[[], int],
    segment: int = 0,
    start: int = 0,
) -> Iterator[list[Span]]:
    """Split a document into pieces.

    Args:
        segments: modality and payload size of each segment.
        patch: P.
        room: returns the ids that the next piece may take, a multiple of P; called once a piece.
            A room too small for a preamble and a patch makes an empty piece.
        segment, start: ordinal of the segment and body id at which the first piece begins.
    Yields:
        the spans of each piece.
    """
    while segment < len(segments):
        free = room()
        spans: list[Span] = []
        while segment < len(segments):
            modality, size = segments[segment]
            opening = preamble_length(modality, patch)
            if free < opening + patch:
                break
            length = min(free - opening, body_length(size, patch) - start)
            spans.append(Span(segment, start, length))
            free -= opening + length
            start += length
            if start == body_length(size, patch):
                segment, start = segment + 1, 0
        yield spans


# --- writing ---


def write_row(row: Framed, spans: RowSpans, payloads: Iterable[Bytes | memoryview]) -> Ints:
    """Frame spans one after the other from the start of a row, and pad the rest.

    Each position is written about once: long rows are bound by memory bandwidth.

    Args:
        row: the arrays to fill; their content does not matter.
        payloads: payload bytes of each span, in order; each is copied before the next is taken.
    Returns:
        [S + 1] position of each span's preamble, and the end of the last span.
    """
    patch = row.patch
    opening = preamble_lengths(spans.modality, patch)
    length = opening + spans.length
    bounds = np.concatenate([[0], np.cumsum(length)])
    body = bounds[:-1] + opening
    patches = int(bounds[-1]) // patch
    row.pad_from(patches)
    row.document[:patches] = np.repeat(spans.document.astype(np.int32), length // patch)
    row.patch_modality[:patches] = np.repeat(spans.modality, length // patch)
    _write_payloads(row, spans, payloads, bounds, body)
    _write_preambles(row, spans, bounds[:-1])
    _write_ends(row, spans, body)
    return bounds


def _write_payloads(
    row: Framed,
    spans: RowSpans,
    payloads: Iterable[Bytes | memoryview],
    bounds: Ints,
    body: Ints,
) -> None:
    """The payload of every span, and PAD on the rest of it."""
    ids, role = row.ids, row.role
    payload_end = body + spans.payload_stop - spans.payload_start
    columns = (bounds[:-1], body, payload_end, bounds[1:])
    for begin, first, last, end, payload in zip(
        *(column.tolist() for column in columns), payloads, strict=True
    ):
        ids[begin:first] = ids[last:end] = PAD
        role[begin:first] = role[last:end] = UNSCORED
        ids[first:last] = payload
        role[first:last] = PAYLOAD


def _write_preambles(row: Framed, spans: RowSpans, begin: Ints) -> None:
    """SOM and header of every span, scored where a segment begins."""
    for code in sorted(set(spans.modality.tolist())):
        modality = BY_CODE[code]
        chosen = np.flatnonzero(spans.modality == code)
        fields = {name: spans.headers[name][chosen] for name in modality.header_fields}
        positions = begin[chosen, None] + np.arange(1 + modality.header_size)
        row.ids[positions[:, 0]] = modality.som
        row.ids[positions[:, 1:]] = modality.pack_headers(
            fields, spans.view[chosen], spans.payload_start[chosen]
        )
        row.role[positions] = np.where(spans.start[chosen] == 0, FRAME, UNSCORED)[:, None]


def _write_ends(row: Framed, spans: RowSpans, body: Ints) -> None:
    """EOM of every segment that ends in its span, and EOD of every document that does."""
    for end, distance, is_due in ((EOM, 0, True), (EOD, 1, spans.is_last)):
        offset = spans.size + distance - spans.start
        ends_here = is_due & (offset >= 0) & (offset < spans.length)
        positions = (body + offset)[ends_here]
        row.ids[positions] = end
        row.role[positions] = FRAME


def frame(
    spans: Sequence[Span],
    segments: Sequence[Segment],
    payload: Callable[[int, int, int], Bytes],
    patch: int,
) -> Framed:
    """Frame one piece of a document.

    Args:
        spans: the piece, as `split_document` yields it.
        segments: all segments of the document.
        payload: payload(segment, start, stop) returns those payload bytes of a segment.
        patch: P.
    """
    columns = _row_spans(spans, segments)
    row = Framed.padding(columns.total_length(patch), patch)
    ordinals = [span.segment for span in spans]
    ranges = zip(
        ordinals, columns.payload_start.tolist(), columns.payload_stop.tolist(), strict=True
    )
    write_row(row, columns, (payload(*part) for part in ranges))
    return row


def _row_spans(spans: Sequence[Span], segments: Sequence[Segment]) -> RowSpans:
    """The spans of one piece as columns."""
    chosen = [segments[span.segment] for span in spans]
    return RowSpans(
        modality=np.array([s.modality.code for s in chosen], np.uint8),
        view=np.array([s.modality.view_code(s.view) for s in chosen], np.uint8),
        headers={
            name: np.array([getattr(s.header, name) for s in chosen], dtype)
            for name, dtype in _HEADER_TYPES.items()
        },
        size=np.array([s.size for s in chosen], np.int64),
        start=np.array([span.start for span in spans], np.int64),
        length=np.array([span.length for span in spans], np.int64),
        document=np.zeros(len(spans), np.int64),
        is_last=np.array([span.segment == len(segments) - 1 for span in spans], np.bool_),
    )


def preamble(
    modality: Modality, header: Header, view: str, offset: int, patch: int
) -> npt.NDArray[np.uint16]:
    """The ids of a preamble at a payload offset, padded to a whole patch."""
    segment = Segment(modality, header, view, size=offset)
    no_payload = np.empty(0, np.uint8)
    return frame([Span(0, offset, length=0)], [segment], lambda *_: no_payload, patch).ids


# --- parsing ---


def parse(ids: npt.NDArray[np.integer], patch: int) -> Iterator[ParsedSegment]:
    """Find the segments in a row of ids.

    A payload extends to the first special id after its preamble, or to the end of the row.

    Raises:
        ValueError: for a broken preamble: a header that is cut off or holds a special id, a view
            that does not exist.
    """
    special = np.flatnonzero(ids >= PAD)
    position = 0
    while position < len(ids):
        modality = BY_SOM.get(int(ids[position]))
        if modality is None:
            if ids[position] != PAD:
                raise ValueError(
                    f"id {ids[position]} at {position} where a segment or padding should begin"
                )
            position += patch
            continue
        header_end = position + 1 + modality.header_size
        packed = ids[position + 1 : header_end]
        if len(packed) < modality.header_size or (packed >= PAD).any():
            raise ValueError(f"the header of the {modality.name} segment at {position} is broken")
        header, view, offset = modality.unpack_header(packed.astype(np.uint8).tobytes())
        begin = position + preamble_length(modality, patch)
        following = special[np.searchsorted(special, begin) :]
        stop = int(following[0]) if len(following) else len(ids)
        ends_stop = stop
        while ends_stop < min(len(ids), stop + MAX_ENDS) and ids[ends_stop] in (EOM, EOD):
            ends_stop += 1
        yield ParsedSegment(
            modality=modality,
            header=header,
            view=view,
            offset=offset,
            preamble=slice(position, header_end),
            payload=slice(begin, max(begin, stop)),
            ends=slice(stop, ends_stop),
        )
        position = up_to_patch(max(ends_stop, begin + 1), patch)


def unframe(
    ids: npt.NDArray[np.integer], patch: int
) -> list[tuple[Modality, Header, str, int, Bytes]]:
    """The (modality, header, view, payload offset, payload) of every segment in a row of ids."""
    return [
        (s.modality, s.header, s.view, s.offset, ids[s.payload].astype(np.uint8))
        for s in parse(ids, patch)
    ]
