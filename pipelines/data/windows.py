"""Windows of a document: parts of it, framed as pieces, that may overlap.

N ids of a document, framed as one piece    n ids of a window    P ids of a patch
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bytelm.modalities import framing
from bytelm.modalities.framing import Segment, Span

Positions = npt.NDArray[np.int64]


def window_spans(
    segments: Sequence[Segment], length: int, patch: int, overlap: bool, shift: bool
) -> Iterator[tuple[list[Span], Positions]]:
    """The windows of a document, of at most `length` ids; every id counts in one of them.

    Args:
        overlap: a window begins in the middle of the window before it.
        shift: each window is repeated half a patch later.
    Yields:
        the spans of a window, and [n] the position in the document of each id that counts in it;
        -1 of the others.
    """
    return _counted_once(_candidates(segments, length, patch, overlap, shift), segments, patch)


def growing_window_spans(
    segments: Sequence[Segment], length: int, step: int, patch: int
) -> Iterator[tuple[list[Span], Positions]]:
    """Windows that begin with the document and grow by `step` ids to `length`, then move on by as
    many: each has about `step` new ids behind all that fit. Yields what `window_spans` does."""
    return _counted_once(_growing(segments, length, step, patch), segments, patch)


def segment_length(segment: Segment, patch: int) -> int:
    """Ids of a whole segment: its preamble and its body."""
    opening = framing.preamble_length(segment.modality, patch)
    return opening + framing.body_length(segment.size, patch)


def _counted_once(
    windows: Iterable[tuple[list[Span], Positions]], segments: Sequence[Segment], patch: int
) -> Iterator[tuple[list[Span], Positions]]:
    """The windows with -1 for the positions that an earlier one has."""
    is_counted = np.zeros(sum(segment_length(segment, patch) for segment in segments), np.bool_)
    for spans, positions in windows:
        counts = (positions >= 0) & ~is_counted[positions]
        is_counted[positions[counts]] = True
        yield spans, np.where(counts, positions, -1)


def _growing(
    segments: Sequence[Segment], length: int, step: int, patch: int
) -> Iterator[tuple[list[Span], Positions]]:
    """Spans and positions [n] of each window, whichever an earlier one has."""
    room, segment, start = step, 0, 0
    while True:
        spans = _spans(segments, room, patch, segment, start)
        yield spans, _positions(spans, segments, patch)
        if _end(spans[-1], segments, patch)[0] == len(segments):
            return
        if room + step <= length:
            room += step
        else:
            opening = framing.preamble_length(segments[segment].modality, patch)
            most = _length(spans, segments, patch) - patch
            segment, start = _ahead(spans, segments, patch, min(opening + step, most))


def _spans(
    segments: Sequence[Segment], length: int, patch: int, segment: int, start: int
) -> list[Span]:
    """Spans of the window of at most `length` ids that begins at a body id of a segment."""
    parts = [(segment.modality, segment.size) for segment in segments]
    return next(framing.split_document(parts, patch, lambda: length, segment, start))


def _candidates(
    segments: Sequence[Segment], length: int, patch: int, overlap: bool, shift: bool
) -> Iterator[tuple[list[Span], Positions]]:
    """Spans of each window, and the positions [n] that count unless an earlier window has them."""
    segment = start = 0
    while segment < len(segments):
        spans = _spans(segments, length, patch, segment, start)
        positions = _positions(spans, segments, patch)
        if shift:
            yield from _strided(spans, positions, segments, length, patch)
        else:
            yield spans, positions
        segment, start = _end(spans[-1], segments, patch)
        if overlap and segment < len(segments):
            half = _length(spans, segments, patch) // 2 // patch * patch
            segment, start = _ahead(spans, segments, patch, half)


def _strided(
    spans: list[Span], positions: Positions, segments: Sequence[Segment], length: int, patch: int
) -> Iterator[tuple[list[Span], Positions]]:
    """A window and its repetition half a patch later, each with the positions that count there."""
    shifted_spans = [_shifted(spans[0], segments, length, patch)]
    shifted = _positions(shifted_spans, segments, patch)
    in_first_half = np.arange(len(positions)) % patch < patch // 2
    yield spans, np.where(in_first_half | ~np.isin(positions, shifted), positions, -1)
    yield shifted_spans, np.where(np.isin(shifted, positions), shifted, -1)


def _shifted(span: Span, segments: Sequence[Segment], length: int, patch: int) -> Span:
    """The span that begins half a patch later, with as much of its segment as fits a window."""
    segment, start = segments[span.segment], span.start + patch // 2
    rest = framing.up_to_patch(framing.body_length(segment.size, patch) - start, patch)
    room = length - framing.preamble_length(segment.modality, patch)
    return Span(span.segment, start, min(rest, room))


def _end(span: Span, segments: Sequence[Segment], patch: int) -> tuple[int, int]:
    """Segment and body id that follow a span."""
    end = span.start + span.length
    if end == framing.body_length(segments[span.segment].size, patch):
        return span.segment + 1, 0
    return span.segment, end


def _length(spans: Sequence[Span], segments: Sequence[Segment], patch: int) -> int:
    """Ids of a window, with its preambles."""
    openings = (framing.preamble_length(segments[s.segment].modality, patch) for s in spans)
    return sum(openings) + sum(span.length for span in spans)


def _ahead(
    spans: Sequence[Span], segments: Sequence[Segment], patch: int, ids: int
) -> tuple[int, int]:
    """Segment and body id that a window, with its preambles, has `ids` after its start."""
    rest = ids
    for span in spans:
        opening = framing.preamble_length(segments[span.segment].modality, patch)
        if rest < opening + span.length:
            break
        rest -= opening + span.length
    # A window that did not move would be scored forever.
    least = patch if span is spans[0] else 0
    start = span.start + max(rest - opening, least)
    is_at_end = start == framing.body_length(segments[span.segment].size, patch)
    return (span.segment + 1, 0) if is_at_end else (span.segment, start)


def _positions(spans: Sequence[Span], segments: Sequence[Segment], patch: int) -> Positions:
    """[n], position in the document of each id of a piece; -1 of filler behind a body and of
    preambles that repeat a segment's header."""
    begins = np.cumsum([0, *(segment_length(segment, patch) for segment in segments)])
    positions = []
    for span in spans:
        segment, begin = segments[span.segment], begins[span.segment]
        opening = framing.preamble_length(segment.modality, patch)
        preamble = begin + np.arange(opening)
        positions.append(preamble if span.start == 0 else np.full(opening, -1))
        body = span.start + np.arange(span.length)
        is_present = body < framing.body_length(segment.size, patch)
        positions.append(np.where(is_present, begin + opening + body, -1))
    return np.concatenate(positions)
