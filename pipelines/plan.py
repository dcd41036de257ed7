"""The plan: which pieces of which documents lie in row r of epoch e.

The plan is a pure function of (root hashes, views, mixture, L, P, seed, epoch). It reads indexes
and no payload, and it finds a row without going through the rows before it:

    shards in permuted order ─▶ windows of shards ─▶ documents permuted, cut, packed into rows
    ─▶ rows permuted within the window ─▶ the sources' rows merged by virtual time

Virtual time mixes by bytes: the middle of a row comes at (payload bytes of its source up to
there) / weight, and the rows of all sources run in the order of their middles. So each source is
at any moment within half a row of weight x virtual time, however much the documents differ in
size. An epoch ends when every source has been passed through once; a source that ends early
begins another pass in a new order.

    L ids in a row    P ids in a patch    R rows of a window    N items (pieces) of a window
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import FILE_VIEW
from bytelm.pipelines.shards import Index, Shard, ShardSet, header_of

PLAN_VERSION = 1
PACKINGS = ("whole", "cut")
PAIR_ORDERS = ("stored", "drawn")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_MODALITIES = list(MODALITIES.values())


@dataclass(frozen=True)
class Source:
    """One split of one shard set, and its part in the mixture."""

    set: ShardSet
    split: str = "train"
    weight: float | None = None
    """Share of the payload bytes, relative to the other sources; None (then for all of them)
    takes each source at its own size."""


@dataclass(frozen=True)
class PlanConfig:
    """What decides the rows beside the sources."""

    row_length: int
    """L, ids in a row; a multiple of the patch."""
    patch: int
    """P, ids in a patch."""
    views: Mapping[str, str]
    """The view of each modality."""
    seed: int = 0
    packing: str = "whole"
    """`whole` cuts only documents longer than a row; `cut` lays documents one after the other
    and cuts where a row ends."""
    pair_order: str = "stored"
    """Order of the segments of a document: `stored`, or `drawn` anew in each epoch."""
    window_shards: int = 16
    """Shards whose documents are permuted and packed together."""

    def __post_init__(self) -> None:
        if self.row_length % self.patch:
            raise ValueError(
                f"a row of {self.row_length} ids is no multiple of the patch of {self.patch}"
            )
        shortest = framing.min_row_length(self.patch)
        if self.row_length < shortest:
            raise ValueError(
                f"a row of {self.row_length} ids cannot hold a preamble and a patch of "
                f"{self.patch}: use {shortest} or more"
            )
        for name, choice, known in (
            ("packing", self.packing, PACKINGS),
            ("pair_order", self.pair_order, PAIR_ORDERS),
        ):
            if choice not in known:
                raise ValueError(f"{name} is {choice!r}; choose one of {', '.join(known)}")
        for modality, view in self.views.items():
            MODALITIES[modality].view_code(view)


@dataclass(frozen=True)
class Piece:
    """What a row takes of one document."""

    source: int
    shard: Shard
    document: int
    """Ordinal of the document in its shard."""
    rows: Index
    """[segments] the document's index rows, in this epoch's order of its segments."""
    segments: Sequence[framing.Segment]
    spans: Sequence[framing.Span]


@dataclass(frozen=True)
class _Window:
    """The packed documents of a few shards."""

    shards: Sequence[Shard]
    shard_of: Ints  # [documents]
    document_of: Ints  # [documents] ordinal in its shard
    segment_order: Mapping[int, Ints]  # of documents whose segments are not as stored
    item_document: Ints  # [N] in order of rows
    item_segment: Ints  # [N] segment and body id at which the item begins
    item_start: Ints
    item_length: Ints  # [N] ids
    row_first: Ints  # [R + 1] first item of each row
    row_bytes: Ints  # [R] payload bytes


@dataclass(frozen=True)
class _Interval:
    """A stretch of virtual time in which every source stays in one window."""

    begin: float
    end: float
    rows_before: int
    places: tuple[tuple[int, int, int], ...]  # of each source: pass, window, bytes before it


@dataclass(frozen=True)
class _Epoch:
    intervals: list[_Interval]
    rows: int
    payload_bytes: int


def shuffled(count: int, *key: int | str) -> Ints:
    """A permutation of range(count) that the key alone decides, in every version of numpy."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    with np.errstate(over="ignore"):  # splitmix64 over a counter; products wrap
        x = np.frombuffer(digest[:8], "<u8") + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


def best_fit(lengths: Sequence[int], row_length: int, patch: int) -> tuple[Ints, int]:
    """Pack items into rows, each into the fullest row that still has room for it.

    Args:
        lengths: [N] multiples of the patch, longest first.
    Returns:
        [N] the row of each item, and the number of rows.
    """
    rows_with_room: list[list[int]] = [[] for _ in range(row_length // patch + 1)]
    rooms = 0  # bit k is set where a row has room for exactly k patches
    row_of = np.empty(len(lengths), np.int64)
    rows = 0
    for item, length in enumerate(lengths):
        need = length // patch
        fitting = rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row, rows = row_length // patch, rows, rows + 1
        row_of[item] = row
        rows_with_room[room - need].append(row)
        rooms |= 1 << (room - need)
    return row_of, rows


class Plan:
    """Rows by number. Raises ValueError where the sources, views and sizes do not go together."""

    def __init__(self, sources: Sequence[Source], config: PlanConfig):
        self.sources = list(sources)
        self.config = config
        self._shards = [s.set.split(s.split) for s in sources]
        for source, shards in zip(sources, self._shards, strict=True):
            if not any(shard.documents for shard in shards):
                raise ValueError(f"{source.set.folder} has no documents in split {source.split!r}")
        weights = [s.weight for s in sources]
        if any(w is None for w in weights) and any(w is not None for w in weights):
            raise ValueError("give a weight to every set of the mixture, or to none")
        if any(w is not None and not w > 0 for w in weights):
            raise ValueError(f"weights of sets must be above 0, not {weights}")
        self.hash = self._hash()
        self._totals = [
            sum(int(self._payload_sizes(i, s.set.index(shard)).sum()) for shard in shards)
            for i, (s, shards) in enumerate(zip(sources, self._shards, strict=True))
        ]
        self._weights = [s.weight or t for s, t in zip(sources, self._totals, strict=True)]
        self._window = lru_cache(maxsize=2 * len(sources) + 2)(self._pack_window)
        self._order = lru_cache(maxsize=2 * len(sources) + 2)(self._window_shards)
        self._epoch = lru_cache(maxsize=2)(self._lay_out_epoch)
        self._merged = lru_cache(maxsize=4)(self._merge)

    def __reduce__(self) -> tuple[Any, ...]:
        """A data worker that is spawned makes its plan anew; the caches stay behind."""
        return Plan, (self.sources, self.config)

    def _hash(self) -> str:
        c = self.config
        identity = {
            "version": PLAN_VERSION,
            "sources": [[s.set.root, s.split, s.weight] for s in self.sources],
            "views": dict(sorted(c.views.items())),
            "row_length": c.row_length,
            "patch": c.patch,
            "seed": c.seed,
            "packing": c.packing,
            "pair_order": c.pair_order,
            "window_shards": c.window_shards,
        }
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def rows(self, epoch: int) -> int:
        """Number of rows of an epoch."""
        return self._epoch(epoch).rows

    def payload_bytes(self, epoch: int) -> int:
        """Payload bytes of an epoch."""
        return self._epoch(epoch).payload_bytes

    def row(self, epoch: int, number: int) -> list[Piece]:
        """The pieces of row `number` (from 0) of an epoch."""
        intervals = self._epoch(epoch).intervals
        place = bisect_right(intervals, number, key=lambda i: i.rows_before) - 1
        source, pass_, window, row = self._merged(epoch, place)[
            number - intervals[place].rows_before
        ]
        packed = self._window(source, epoch, pass_, window)
        items = range(packed.row_first[row], packed.row_first[row + 1])
        return [self._piece(source, packed, item) for item in items]

    def positions(self, epoch: int, row: int) -> Iterator[tuple[int, int]]:
        """(epoch, row) of row after row without end, beginning with the one given."""
        while True:
            if row < self.rows(epoch):
                yield epoch, row
                row += 1
            else:
                epoch, row = epoch + 1, 0

    # --- merging the sources ---

    def _lay_out_epoch(self, epoch: int) -> _Epoch:
        """Go through the epoch window by window, and keep where each one begins."""
        end = max(t / w for t, w in zip(self._totals, self._weights, strict=True))
        places = [(0, 0, 0)] * len(self.sources)
        intervals: list[_Interval] = []
        begin, rows, payload = 0.0, 0, 0
        while begin < end:
            windows = [self._window(s, epoch, p, w) for s, (p, w, _) in enumerate(places)]
            after = [
                before + int(window.row_bytes.sum())
                for (_, _, before), window in zip(places, windows, strict=True)
            ]
            stops = [a / w for a, w in zip(after, self._weights, strict=True)]
            interval = _Interval(begin, min([*stops, end]), rows, tuple(places))
            intervals.append(interval)
            for source, window in enumerate(windows):
                taken = window.row_bytes[self._rows_of(interval, source, window)]
                rows += len(taken)
                payload += int(taken.sum())
            for source, (pass_, number, _) in enumerate(places):
                if stops[source] <= interval.end:
                    number += 1
                    if number == len(self._order(source, epoch, pass_)):
                        pass_, number = pass_ + 1, 0
                    places[source] = (pass_, number, after[source])
            begin = interval.end
        return _Epoch(intervals, rows, payload)

    def _rows_of(self, interval: _Interval, source: int, window: _Window) -> slice:
        """The rows of a source's window whose middle lies in an interval; all that are left of
        it where the window ends with the interval."""
        _, _, before = interval.places[source]
        times = self._times(interval, source, window)
        first, last = np.searchsorted(times, [interval.begin, interval.end])
        if (before + int(window.row_bytes.sum())) / self._weights[source] <= interval.end:
            last = len(times)
        return slice(int(first), int(last))

    def _times(self, interval: _Interval, source: int, window: _Window) -> Floats:
        """[R] the virtual time of the middle of each row of a source's window."""
        _, _, before = interval.places[source]
        ends = before + np.cumsum(window.row_bytes)
        return (ends - window.row_bytes / 2) / self._weights[source]

    def _merge(self, epoch: int, place: int) -> list[tuple[int, int, int, int]]:
        """(source, pass, window, row of the window) of each row of an interval."""
        interval = self._epoch(epoch).intervals[place]
        entries: list[tuple[float, int, int, int, int]] = []
        for source, (pass_, number, _) in enumerate(interval.places):
            window = self._window(source, epoch, pass_, number)
            times = self._times(interval, source, window)
            rows = self._rows_of(interval, source, window)
            entries += [(times[r], source, pass_, number, r) for r in range(rows.start, rows.stop)]
        return [entry[1:] for entry in sorted(entries)]

    # --- one window ---

    def _window_shards(self, source: int, epoch: int, pass_: int) -> list[list[Shard]]:
        shards = self._shards[source]
        order = shuffled(len(shards), self.config.seed, epoch, pass_, source, "shards")
        permuted = [shards[i] for i in order]
        step = self.config.window_shards
        return [permuted[i : i + step] for i in range(0, len(permuted), step)]

    def _pack_window(self, source: int, epoch: int, pass_: int, number: int) -> _Window:
        key = (self.config.seed, epoch, pass_, source, number)
        shards = self._order(source, epoch, pass_)[number]
        indexes = [self.sources[source].set.index(shard) for shard in shards]
        rows = np.concatenate(indexes)
        sizes = self._payload_sizes(source, rows)
        shard_of_segment = np.repeat(np.arange(len(shards)), [len(i) for i in indexes])

        new = np.ones(len(rows), np.bool_)  # segments that begin a document
        new[1:] = (np.diff(rows["document"].astype(np.int64)) != 0) | (
            np.diff(shard_of_segment) != 0
        )
        first = np.flatnonzero(new)
        count = np.diff(np.append(first, len(rows)))
        segment_order: dict[int, Ints] = {}
        if self.config.pair_order == "drawn":
            for d in np.flatnonzero(count > 1):
                segment_order[int(d)] = shuffled(int(count[d]), *key, int(d), "segments")

        def segments(d: int) -> list[tuple[Any, int]]:
            places = first[d] + segment_order.get(d, np.arange(count[d]))
            return [(_MODALITIES[rows["modality"][p]], int(sizes[p])) for p in places]

        documents = shuffled(len(first), *key, "documents")
        if self.config.packing == "whole":
            items, row_of, row_count = self._pack_whole(documents, rows, sizes, first, segments)
        else:
            items, row_of, row_count = self._pack_cut(documents, segments)

        row_order = shuffled(row_count, *key, "rows")
        new_place = np.empty(row_count, np.int64)
        new_place[row_order] = np.arange(row_count)
        by_row = np.argsort(new_place[row_of], kind="stable")
        row_of = new_place[row_of][by_row]
        items = items[by_row]
        return _Window(
            shards=shards,
            shard_of=shard_of_segment[first],
            document_of=rows["document"][first].astype(np.int64),
            segment_order=segment_order,
            item_document=items[:, 0],
            item_segment=items[:, 1],
            item_start=items[:, 2],
            item_length=items[:, 3],
            row_first=np.searchsorted(row_of, np.arange(row_count + 1)),
            row_bytes=np.bincount(row_of, weights=items[:, 4], minlength=row_count).astype(
                np.int64
            ),
        )

    def _pack_whole(
        self, documents: Ints, rows: Index, sizes: Ints, first: Ints, segments: Any
    ) -> tuple[Ints, Ints, int]:
        """Items [N, 5] of (document, segment, start, length, payload bytes), rows, their number."""
        patch, row_length = self.config.patch, self.config.row_length
        opening = np.array([framing.preamble_length(m, patch) for m in _MODALITIES])
        lengths = np.add.reduceat(
            opening[rows["modality"]] + framing.body_length(sizes, patch), first
        )
        payload = np.add.reduceat(sizes, first)
        fits = documents[lengths[documents] <= row_length]
        zeros = np.zeros(len(fits), np.int64)
        parts = [np.stack([fits, zeros, zeros, lengths[fits], payload[fits]], axis=1)]
        for d in documents[lengths[documents] > row_length]:
            pieces = framing.cut(segments(d), patch, lambda: row_length)
            parts.append(_items(int(d), segments(d), pieces, patch))
        items = np.concatenate(parts)
        items = items[np.argsort(-items[:, 3], kind="stable")]
        row_of, row_count = best_fit(items[:, 3].tolist(), row_length, patch)
        return items, row_of, row_count

    def _pack_cut(self, documents: Ints, segments: Any) -> tuple[Ints, Ints, int]:
        """Items [N, 5] of (document, segment, start, length, payload bytes), rows, their number."""
        patch, row_length = self.config.patch, self.config.row_length
        left, row = row_length, 0
        parts: list[Ints] = []
        row_of: list[int] = []

        def room() -> int:
            return left

        for d in documents:
            parsed = segments(d)
            for spans in framing.cut(parsed, patch, room):
                if spans:
                    parts.append(_items(int(d), parsed, [spans], patch))
                    row_of.append(row)
                    left -= int(parts[-1][0, 3])
                done = bool(spans) and _ends(spans[-1], parsed, patch)
                if not done:
                    row, left = row + 1, row_length
        return np.concatenate(parts), np.array(row_of, np.int64), row_of[-1] + 1

    def _payload_sizes(self, source: int, rows: Index) -> Ints:
        """[segments] payload bytes under the views; ValueError for a view that cannot be had."""
        folder = self.sources[source].set.folder
        sizes = rows["size"].astype(np.int64)
        for modality in _MODALITIES:
            view = self.config.views[modality.name]
            decoded = (rows["modality"] == modality.code) & (rows["is_file"] == 0)
            if not decoded.any():
                continue
            if view == FILE_VIEW:
                raise ValueError(
                    f"view {FILE_VIEW!r} of {modality.name}: {folder} holds decoded samples; "
                    "prepare it with --keep-files, or choose another view"
                )
            sizes[decoded] = modality.payload_size(sizes[decoded], view)
            for channels in np.unique(rows["channels"][decoded]):
                modality.check_view(view, int(channels), self.config.patch)
        return sizes

    def _piece(self, source: int, window: _Window, item: int) -> Piece:
        d = int(window.item_document[item])
        shard = window.shards[window.shard_of[d]]
        document = int(window.document_of[d])
        rows = document_rows(self.sources[source].set.index(shard), document)
        if d in window.segment_order:
            rows = rows[window.segment_order[d]]
        segments = [self.segment(row) for row in rows]
        spans = _spans_from(
            [(s.modality, s.size) for s in segments],
            int(window.item_segment[item]),
            int(window.item_start[item]),
            int(window.item_length[item]),
            self.config.patch,
        )
        return Piece(source, shard, document, rows, segments, spans)

    def segment(self, row: np.void) -> framing.Segment:
        """The segment of an index row as the stream sees it."""
        modality = _MODALITIES[row["modality"]]
        view = FILE_VIEW if row["is_file"] else self.config.views[modality.name]
        size = int(row["size"]) if row["is_file"] else modality.payload_size(int(row["size"]), view)
        return framing.Segment(modality, header_of(row), view, size)


def document_rows(index: Index, document: int) -> Index:
    """The index rows of one document."""
    first, last = np.searchsorted(index["document"], [document, document + 1])
    return index[first:last]


def _items(document: int, segments: Any, pieces: Any, patch: int) -> Ints:
    """[pieces, 5] (document, segment, start, length, payload bytes) of pieces of a document."""
    items = []
    for spans in pieces:
        payload = sum(
            min(s.start + s.length, segments[s.segment][1]) - min(s.start, segments[s.segment][1])
            for s in spans
        )
        length = framing.piece_length(spans, segments, patch)
        items.append((document, spans[0].segment, spans[0].start, length, payload))
    return np.array(items, np.int64)


def _ends(span: framing.Span, segments: Any, patch: int) -> bool:
    """Whether a span is the last of its document."""
    last = len(segments) - 1
    body = framing.body_length(segments[last][1], patch)
    return span.segment == last and span.start + span.length == body


def _spans_from(
    segments: Sequence[tuple[Any, int]], segment: int, start: int, length: int, patch: int
) -> list[framing.Span]:
    """The spans of the piece of `length` ids that begins at a segment and a place in its body."""
    pieces = framing.cut(segments, patch, lambda: length, segment, start)
    return next(pieces)
