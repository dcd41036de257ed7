"""Packing: how the documents of one shard are split into pieces and laid into rows.

A piece is a document, or a part of one, that lies in one row. A shard is packed by itself, so the
number of its rows depends only on its lengths, never on the epoch or on other shards. That lets
the plan find any row from a table of shards.

    L ids in a row    P ids in a patch    R rows    K pieces    S spans
    M members (index rows) of a shard     D documents of a shard
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bytelm.modalities import BY_CODE, MODALITIES, framing
from bytelm.modalities.base import Modality
from bytelm.modalities.framing import Bools, Ints
from bytelm.pipelines.shards.format import Index

PLAN_VERSION = 2
"""Version of the rows that the same sets and options give; counts and checkpoints hold it."""
PACKINGS = {"best_fit": "whole", "concat_then_split": "cut"}
"""Ways of packing, and the name of each in a plan's identity on disk."""
PAIR_ORDERS = ("stored", "drawn")


@dataclass(frozen=True)
class PlanConfig:
    """Everything that decides the rows but the sources."""

    row_length: int
    """L, ids in a row; a multiple of the patch."""
    patch: int
    """P, ids in a patch."""
    views: Mapping[str, str]
    """The view of each modality."""
    seed: int = 0
    packing: str = "best_fit"
    """`best_fit` splits only documents longer than a row; `concat_then_split` lays documents
    one after the other and splits them where a row ends."""
    pair_order: str = "stored"
    """Order of the segments of a document: `stored`, or `drawn` anew in each pass. The order of
    a document that is split is drawn once."""
    shuffle_window: int = 16
    """Shards whose rows are permuted together."""

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
        for name, choice, choices in (
            ("packing", self.packing, tuple(PACKINGS)),
            ("pair_order", self.pair_order, PAIR_ORDERS),
        ):
            if choice not in choices:
                raise ValueError(f"{name} is {choice!r}; choose one of {', '.join(choices)}")
        for modality, view in self.views.items():
            MODALITIES[modality].view_code(view)


@dataclass(frozen=True)
class PackedShard:
    """The rows of one shard: its spans in the order of rows and of positions in them."""

    first_span: Ints
    """[R + 1] first span of each row."""
    member: Ints
    """[S] index row of the span's segment."""
    start: Ints
    """[S] first body id."""
    length: Ints
    """[S] body ids."""
    piece: Ints
    """[S] ordinal in its row of the piece that the span belongs to."""
    is_last: Bools
    """[S] whether the segment is the last of its document."""
    row_bytes: Ints
    """[R] payload bytes."""


@dataclass(frozen=True)
class _Layout:
    """Pieces of a shard in the rows they were assigned to, in any order."""

    spans: Ints
    """[S, 4] (member, start, length, is last)."""
    piece_of_span: Ints
    """[S]."""
    row_of_piece: Ints
    """[K]."""


def shuffled(count: int, *key: int | str) -> Ints:
    """A permutation of range(count) that depends on the key alone, in every version of numpy."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # splitmix64 over a counter; sums and products wrap
        x = np.frombuffer(digest[:8], "<u8") + np.arange(1, count + 1, dtype=np.uint64) * step
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


def best_fit(lengths: Ints, row_length: int, patch: int) -> tuple[Ints, int]:
    """Pack pieces into rows, each into the fullest row that still has room for it.

    Args:
        lengths: [K] multiples of the patch, longest first.
        row_length: L.
        patch: P.
    Returns:
        [K] the row of each piece, and the number of rows.
    """
    rows_by_room: list[list[int]] = [[] for _ in range(row_length // patch + 1)]
    rooms = 0  # bit k is set where a row has room for exactly k patches
    row_of_piece: list[int] = []
    rows = 0
    needs, counts = np.unique(-lengths // patch, return_counts=True)  # negative: longest first
    for need, count in zip((-needs).tolist(), counts.tolist(), strict=True):
        while count:
            fitting = rooms >> need
            if fitting:
                room = need + (fitting & -fitting).bit_length() - 1
                row = rows_by_room[room].pop()
                if not rows_by_room[room]:
                    rooms ^= 1 << room
            else:
                room, row, rows = row_length // patch, rows, rows + 1
            # The row stays the fullest with room for the next piece of the same length.
            fits = min(count, room // need)
            row_of_piece += [row] * fits
            count -= fits
            room -= fits * need
            rows_by_room[room].append(row)
            rooms |= 1 << room
    return np.array(row_of_piece, np.int64), rows


class _Members:
    """A shard's members under the views: their sizes and lengths, and where documents begin."""

    def __init__(self, index: Index, sizes: Ints, patch: int):
        self.modality = index["modality"]
        self.sizes = sizes
        self.opening = framing.preamble_lengths(self.modality, patch)
        self.body = framing.body_length(sizes, patch)
        document = index["document"].astype(np.int64)
        self.first = np.flatnonzero(np.diff(document, prepend=-1))  # [D] first member
        self.count = np.diff(np.append(self.first, len(index)))  # [D] members
        self.length = np.add.reduceat(self.opening + self.body, self.first)  # [D] ids

    def sized(self, members: Ints) -> list[tuple[Modality, int]]:
        """Modality and payload size of some members, as `framing.split_document` takes them."""
        return [(BY_CODE[self.modality[m]], int(self.sizes[m])) for m in members]


def pack_shard(index: Index, sizes: Ints, config: PlanConfig, salt: str, pass_: int) -> PackedShard:
    """Pack one shard into rows.

    Args:
        index: [M] the shard's index rows.
        sizes: [M] payload bytes of each member under the views.
        config: row and patch lengths, packing, and the seed.
        salt: the shard's name; together with the seed it decides everything that is drawn.
        pass_: number of the pass over the set. It decides which of equally long documents share
            a row and the drawn order of segments, never the number of rows.
    """
    members = _Members(index, sizes, config.patch)
    if config.packing == "best_fit":
        layout = _best_fit_layout(members, config, salt, pass_)
    else:
        layout = _concat_then_split_layout(members, config, salt)
    row = layout.row_of_piece[layout.piece_of_span]
    order = np.argsort(row, kind="stable")
    row, piece = row[order], layout.piece_of_span[order]
    member, start, length, is_last = layout.spans[order].T

    rows = int(row[-1]) + 1
    first_span = np.searchsorted(row, np.arange(rows + 1))
    ordinal = np.cumsum(np.diff(piece, prepend=-1) != 0)
    size = sizes[member]
    payload = np.minimum(start + length, size) - np.minimum(start, size)
    return PackedShard(
        first_span=first_span,
        member=member,
        start=start,
        length=length,
        piece=ordinal - ordinal[first_span[row]],
        is_last=is_last.astype(np.bool_),
        row_bytes=np.add.reduceat(payload, first_span[:-1]),
    )


# --- best fit ---


def _best_fit_layout(members: _Members, config: PlanConfig, salt: str, pass_: int) -> _Layout:
    """Split documents longer than a row, and fit all pieces into rows."""
    documents = shuffled(len(members.first), config.seed, salt, pass_, "documents")
    fits = members.length[documents] <= config.row_length
    fitting, long = documents[fits], documents[~fits]
    parts = [
        _unsplit_pieces(members, config, salt, pass_, fitting),
        _single_segment_pieces(members, config, long[members.count[long] == 1]),
        _pair_pieces(members, config, salt, long[members.count[long] > 1]),
    ]
    spans = np.concatenate([spans for spans, _ in parts])
    spans_per_piece = np.concatenate([counts for _, counts in parts])
    piece_of_span = np.repeat(np.arange(len(spans_per_piece)), spans_per_piece)
    ids = members.opening[spans[:, 0]] + spans[:, 2]
    lengths = np.bincount(piece_of_span, ids).astype(np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    row_of_piece = np.empty(len(lengths), np.int64)
    row_of_piece[longest_first], _ = best_fit(
        lengths[longest_first], config.row_length, config.patch
    )
    return _Layout(spans, piece_of_span, row_of_piece)


def _unsplit_pieces(
    members: _Members, config: PlanConfig, salt: str, pass_: int, documents: Ints
) -> tuple[Ints, Ints]:
    """Spans [S, 4] of documents that fit into a row, and the spans of each."""
    count = members.count[documents]
    end = np.cumsum(count)
    member = _ranges(members.first[documents], count)
    if config.pair_order == "drawn":
        for d, begin in zip(documents.tolist(), (end - count).tolist(), strict=True):
            segments = int(members.count[d])
            if segments > 1:
                order = shuffled(segments, config.seed, salt, pass_, d, "segments")
                member[begin : begin + segments] = members.first[d] + order
    is_last = np.zeros_like(member)
    is_last[end - 1] = 1
    return np.stack([member, np.zeros_like(member), members.body[member], is_last], axis=1), count


def _single_segment_pieces(
    members: _Members, config: PlanConfig, documents: Ints
) -> tuple[Ints, Ints]:
    """Spans [S, 4] of long documents of one segment, and the spans of each piece, which is 1."""
    member = members.first[documents]
    room = config.row_length - members.opening[member]
    pieces = -(-members.body[member] // room)
    member, room = np.repeat(member, pieces), np.repeat(room, pieces)
    start = _ranges(np.zeros_like(pieces), pieces) * room
    length = np.minimum(room, members.body[member] - start)
    is_last = np.ones_like(start)
    return np.stack([member, start, length, is_last], axis=1), is_last


def _pair_pieces(
    members: _Members, config: PlanConfig, salt: str, documents: Ints
) -> tuple[Ints, Ints]:
    """Spans [S, 4] of long documents of several segments, and the spans of each piece."""
    pieces = [
        piece
        for d in documents.tolist()
        for piece in _split_document(members, config, salt, d, lambda: config.row_length)
    ]
    counts = np.array([len(piece) for piece in pieces], np.int64)
    return np.concatenate([np.empty((0, 4), np.int64), *pieces]), counts


# --- concatenate, then split ---


def _concat_then_split_layout(members: _Members, config: PlanConfig, salt: str) -> _Layout:
    """Lay documents one after the other and split them where a row ends.

    The splits depend on the documents' order, so that order is drawn once for all passes.
    """
    free, row, is_first = config.row_length, 0, True

    def room() -> int:
        """The rest of the row for a document's first piece; a whole row for each further one."""
        nonlocal free, row, is_first
        if not is_first:
            free, row = config.row_length, row + 1
        is_first = False
        return free

    pieces: list[Ints] = []
    rows: list[int] = []
    for d in shuffled(len(members.first), config.seed, salt, "documents").tolist():
        is_first = True
        for piece in _split_document(members, config, salt, d, room):
            if len(piece):
                pieces.append(piece)
                rows.append(row)
                free -= int((members.opening[piece[:, 0]] + piece[:, 2]).sum())
    piece_of_span = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    return _Layout(np.concatenate(pieces), piece_of_span, np.array(rows, np.int64))


def _split_document(
    members: _Members, config: PlanConfig, salt: str, document: int, room: Callable[[], int]
) -> Iterator[Ints]:
    """Spans [S, 4] of (member, start, length, is last) of each piece of a document."""
    order = np.arange(members.count[document])
    if config.pair_order == "drawn":
        order = shuffled(len(order), config.seed, salt, document, "segments")
    member = members.first[document] + order
    for spans in framing.split_document(members.sized(member), config.patch, room):
        yield np.array(
            [(member[s.segment], s.start, s.length, s.segment == len(order) - 1) for s in spans],
            np.int64,
        ).reshape(-1, 4)


def _ranges(first: Ints, count: Ints) -> Ints:
    """The ranges first[i] ... first[i] + count[i] - 1, one after the other."""
    position = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(first - position, count)
