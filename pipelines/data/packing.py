"""Packing: how the documents of one shard are cut and laid into rows.

A shard is packed by itself, so the number of its rows depends on its lengths alone: not on the
epoch, not on other shards. That is what lets the plan find any row from a table of shards.

    L ids in a row    P ids in a patch    R rows    N spans    M members (index rows) of a shard
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bytelm.modalities import BY_CODE, MODALITIES, framing
from bytelm.modalities.base import Modality
from bytelm.pipelines.shards.format import Index

PACKINGS = {"best_fit": "whole", "concat_then_split": "cut"}
"""Ways of packing, and what each is called in a plan's identity."""
PAIR_ORDERS = ("stored", "drawn")

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


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
    packing: str = "best_fit"
    """`best_fit` cuts only documents longer than a row; `concat_then_split` lays documents
    one after the other and cuts where a row ends."""
    pair_order: str = "stored"
    """Order of the segments of a document: `stored`, or `drawn` anew in each pass; the order of
    a document that is cut is drawn once."""
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
        for name, choice, known in (
            ("packing", self.packing, tuple(PACKINGS)),
            ("pair_order", self.pair_order, PAIR_ORDERS),
        ):
            if choice not in known:
                raise ValueError(f"{name} is {choice!r}; choose one of {', '.join(known)}")
        for modality, view in self.views.items():
            MODALITIES[modality].view_code(view)


@dataclass(frozen=True)
class Packed:
    """The rows of one shard: its spans, in the order of rows and of places in them."""

    first_span: Ints
    """[R + 1] first span of each row."""
    member: Ints
    """[N] index row of the span's segment."""
    start: Ints
    """[N] first body id."""
    length: Ints
    """[N] body ids."""
    at: Ints
    """[N] place in the row at which the span's preamble begins."""
    piece: Ints
    """[N] ordinal in its row of the piece that the span belongs to."""
    is_last: Bools
    """[N] whether the segment is the last of its document."""
    row_bytes: Ints
    """[R] payload bytes."""


def shuffled(count: int, *key: int | str) -> Ints:
    """A permutation of range(count) that the key alone decides, in every version of numpy."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # splitmix64 over a counter; sums and products wrap
        x = np.frombuffer(digest[:8], "<u8") + np.arange(1, count + 1, dtype=np.uint64) * step
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


def best_fit(lengths: Ints, row_length: int, patch: int) -> tuple[Ints, int]:
    """Pack items into rows, each into the fullest row that still has room for it.

    Args:
        lengths: [N] multiples of the patch, longest first.
    Returns:
        [N] the row of each item, and the number of rows.
    """
    rows_with_room: list[list[int]] = [[] for _ in range(row_length // patch + 1)]
    rooms = 0  # bit k is set where a row has room for exactly k patches
    row_of: list[int] = []
    rows = 0
    needs, counts = np.unique(-lengths // patch, return_counts=True)  # negative: longest first
    for need, count in zip((-needs).tolist(), counts.tolist(), strict=True):
        while count:
            fitting = rooms >> need
            if fitting:
                room = need + (fitting & -fitting).bit_length() - 1
                row = rows_with_room[room].pop()
                if not rows_with_room[room]:
                    rooms ^= 1 << room
            else:
                room, row, rows = row_length // patch, rows, rows + 1
            # The row stays the fullest with room for the next item of the same length.
            taken = min(count, room // need)
            row_of += [row] * taken
            count -= taken
            left = room - taken * need
            rows_with_room[left].append(row)
            rooms |= 1 << left
    return np.array(row_of, np.int64), rows


class _Members:
    """A shard's members under the views: sizes, lengths, and where documents begin."""

    def __init__(self, index: Index, sizes: Ints, patch: int):
        opening = np.array([framing.preamble_length(m, patch) for m in BY_CODE])
        self.modality = index["modality"]
        self.sizes = sizes
        self.opening = opening[self.modality]
        self.body = framing.body_length(sizes, patch)
        document = index["document"].astype(np.int64)
        self.first = np.flatnonzero(np.diff(document, prepend=-1))
        self.count = np.diff(np.append(self.first, len(index)))
        self.length = np.add.reduceat(self.opening + self.body, self.first)

    def parts(self, members: Ints) -> list[tuple[Modality, int]]:
        """Modality and payload size of each of some members, as `framing.cut` takes them."""
        return [(BY_CODE[self.modality[m]], int(self.sizes[m])) for m in members]


def pack_shard(index: Index, sizes: Ints, config: PlanConfig, seed: str, pass_: int) -> Packed:
    """The rows of one shard.

    Args:
        index: the shard's index rows.
        sizes: [M] payload bytes of each member under the views.
        seed: names the shard; with the config's seed it decides all that is drawn.
        pass_: number of the pass over the set; it decides which of equally long documents share
            a row and the drawn order of segments, and never the number of rows.
    """
    members = _Members(index, sizes, config.patch)
    if config.packing == "best_fit":
        spans, item_of, row_of_item = _lay_whole(members, config, seed, pass_)
    else:
        spans, item_of, row_of_item = _lay_cut(members, config, seed)
    row = row_of_item[item_of]
    order = np.argsort(row, kind="stable")
    row, item_of, spans = row[order], item_of[order], spans[order]
    member, start, length = spans[:, 0], spans[:, 1], spans[:, 2]

    rows = int(row[-1]) + 1
    first_span = np.searchsorted(row, np.arange(rows + 1))
    ends = np.cumsum(members.opening[member] + length)
    begins = ends - (members.opening[member] + length)
    new_piece = np.cumsum(np.diff(item_of, prepend=-1) != 0)
    size = sizes[member]
    payload = np.minimum(start + length, size) - np.minimum(start, size)
    return Packed(
        first_span=first_span,
        member=member,
        start=start,
        length=length,
        at=begins - begins[first_span[row]],
        piece=new_piece - new_piece[first_span[row]],
        is_last=spans[:, 3].astype(np.bool_),
        row_bytes=np.add.reduceat(payload, first_span[:-1]),
    )


def _lay_whole(
    members: _Members, config: PlanConfig, seed: str, pass_: int
) -> tuple[Ints, Ints, Ints]:
    """Spans [N, 4] of (member, start, length, is last), item of each span, row of each item."""
    documents = shuffled(len(members.first), config.seed, seed, pass_, "documents")
    fits = members.length[documents] <= config.row_length
    whole, long = documents[fits], documents[~fits]

    flat = _ranges(members.first[whole], members.count[whole])
    is_last = np.zeros(len(flat), np.int64)
    is_last[np.cumsum(members.count[whole]) - 1] = 1
    if config.pair_order == "drawn":
        begins = np.cumsum(members.count[whole]) - members.count[whole]
        for d, begin in zip(whole.tolist(), begins.tolist(), strict=True):
            count = int(members.count[d])
            if count > 1:
                drawn = shuffled(count, config.seed, seed, pass_, d, "segments")
                flat[begin : begin + count] = members.first[d] + drawn
    spans = [np.stack([flat, np.zeros_like(flat), members.body[flat], is_last], axis=1)]
    items = [np.repeat(np.arange(len(whole)), members.count[whole])]

    single = long[members.count[long] == 1]
    member = members.first[single]
    room = config.row_length - members.opening[member]
    pieces = -(-members.body[member] // room)
    start = _ranges(np.zeros_like(pieces), pieces) * np.repeat(room, pieces)
    body, room = np.repeat(members.body[member], pieces), np.repeat(room, pieces)
    length = np.minimum(room, body - start)
    spans.append(np.stack([np.repeat(member, pieces), start, length, np.ones_like(start)], axis=1))
    items.append(len(whole) + np.arange(len(start)))

    next_item = len(whole) + len(start)
    for d in long[members.count[long] > 1].tolist():
        for piece in _cut_document(members, config, seed, d, lambda: config.row_length):
            spans.append(piece)
            items.append(np.full(len(piece), next_item))
            next_item += 1

    table, item_of = np.concatenate(spans), np.concatenate(items)
    lengths = np.bincount(item_of, members.opening[table[:, 0]] + table[:, 2]).astype(np.int64)
    by_length = np.argsort(-lengths, kind="stable")
    row_of_item = np.empty(len(lengths), np.int64)
    row_of_item[by_length], _ = best_fit(lengths[by_length], config.row_length, config.patch)
    return table, item_of, row_of_item


def _lay_cut(members: _Members, config: PlanConfig, seed: str) -> tuple[Ints, Ints, Ints]:
    """As `_lay_whole`. Where rows are cut depends on the documents' order, so it is drawn once."""
    left, row, is_first = config.row_length, 0, True

    def room() -> int:
        """What is left of the row for a document's first piece; a whole row for each further."""
        nonlocal left, row, is_first
        if not is_first:
            left, row = config.row_length, row + 1
        is_first = False
        return left

    spans: list[Ints] = []
    rows: list[int] = []
    for d in shuffled(len(members.first), config.seed, seed, "documents").tolist():
        is_first = True
        for piece in _cut_document(members, config, seed, d, room):
            if len(piece):
                spans.append(piece)
                rows.append(row)
                left -= int((members.opening[piece[:, 0]] + piece[:, 2]).sum())
    item_of = np.repeat(np.arange(len(spans)), [len(s) for s in spans])
    return np.concatenate(spans), item_of, np.array(rows, np.int64)


def _cut_document(
    members: _Members, config: PlanConfig, seed: str, document: int, room: Callable[[], int]
) -> Iterator[Ints]:
    """Spans [n, 4] of (member, start, length, is last) of each piece of a document."""
    order = np.arange(members.count[document])
    if config.pair_order == "drawn":
        order = shuffled(len(order), config.seed, seed, document, "segments")
    own = members.first[document] + order
    for spans in framing.cut(members.parts(own), config.patch, room):
        yield np.array(
            [(own[s.segment], s.start, s.length, s.segment == len(own) - 1) for s in spans],
            np.int64,
        ).reshape(-1, 4)


def _ranges(first: Ints, count: Ints) -> Ints:
    """The ranges first[i] ... first[i] + count[i] - 1, one after the other."""
    before = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(first - before, count)
