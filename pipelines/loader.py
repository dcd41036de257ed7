"""Batches: the rows that the plan names, read from shards, framed, and stacked.

B rows of a micro batch    L ids in a row    P ids in a patch    W ranks
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bytelm.modalities import framing
from bytelm.modalities.base import Bytes
from bytelm.pipelines.plan import Piece, Plan

FILLER_DOCUMENT = -1
PAYLOAD_CACHE_BYTES = 1 << 26

Position = tuple[int, int]
"""Epoch, and row in it."""


@dataclass(frozen=True)
class Origin:
    """Where a piece of a row came from."""

    set: str
    shard: str
    key: str


@dataclass
class Row:
    """One row of the plan, or a row of filler."""

    framed: framing.Framed
    document: npt.NDArray[np.int32]
    """[L/P] which document of the row each patch belongs to; -1 on filler."""
    origins: list[Origin]


@dataclass
class Batch:
    """Rows as tensors."""

    ids: Tensor
    """[B, L] uint16."""
    modality: Tensor
    """[B, L] uint8, the modality's code; 0 on filler."""
    document: Tensor
    """[B, L/P] int32, which document of its row each patch belongs to; -1 on filler."""
    scored: Tensor
    """[B, L] bool, ids that the loss counts."""
    payload: Tensor
    """[B, L] bool, payload bytes."""
    origins: list[list[Origin]]
    """Of each row, where its documents 0, 1, ... came from."""

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for copies to a GPU."""
        return Batch(
            self.ids.pin_memory(),
            self.modality.pin_memory(),
            self.document.pin_memory(),
            self.scored.pin_memory(),
            self.payload.pin_memory(),
            self.origins,
        )


class RowDataset(Dataset[Row]):
    """Rows by position; None gives a row of filler."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._payloads: OrderedDict[tuple[int, str, int], Bytes] = OrderedDict()
        self._payload_bytes = 0

    def __getitem__(self, position: Position | None) -> Row:
        config = self.plan.config
        row = framing.Framed.filler(config.row_length)
        document = np.full(config.row_length // config.patch, FILLER_DOCUMENT, np.int32)
        origins: list[Origin] = []
        at = 0
        for piece in self.plan.row(*position) if position else []:
            framed = framing.frame(
                piece.spans,
                piece.segments,
                partial(self._read, piece),
                config.patch,
            )
            end = at + len(framed.ids)
            row.ids[at:end] = framed.ids
            row.modality[at:end] = framed.modality
            row.scored[at:end] = framed.scored
            row.payload[at:end] = framed.payload
            document[at // config.patch : end // config.patch] = len(origins)
            origins.append(self._origin(piece))
            at = end
        return Row(row, document, origins)

    def _origin(self, piece: Piece) -> Origin:
        shard_set = self.plan.sources[piece.source].set
        key = shard_set.key(piece.shard, piece.rows[0])
        return Origin(str(shard_set.folder), piece.shard.name, key)

    def _read(self, piece: Piece, segment: int, start: int, stop: int) -> Bytes:
        return self._payload(piece, segment)[start:stop]

    def _payload(self, piece: Piece, segment: int) -> Bytes:
        """The whole payload of a segment. Payloads are kept while there is room, so that the
        pieces of a long document do not each read it again."""
        row = piece.rows[segment]
        key = (piece.source, piece.shard.name, int(row["offset"]))
        if key in self._payloads:
            self._payloads.move_to_end(key)
            return self._payloads[key]
        seen = piece.segments[segment]
        sample = self.plan.sources[piece.source].set.sample(piece.shard, row)
        payload = seen.modality.to_view(sample, seen.view, self.plan.config.patch)
        assert payload.size == seen.size, "the plan and the codec disagree on a payload's size"
        self._payloads[key] = payload
        self._payload_bytes += payload.size
        while self._payload_bytes > PAYLOAD_CACHE_BYTES and len(self._payloads) > 1:
            _, dropped = self._payloads.popitem(last=False)
            self._payload_bytes -= dropped.size
        return payload


class TrainingRows(Sampler[list[Position]]):
    """The micro batches of one rank, without end, from a position of the plan on.

    A global batch is rows [n·G, (n+1)·G); rank k of W takes the k-th G/W of it, in `accumulation`
    micro batches. So the global batches do not depend on the number of ranks.
    """

    def __init__(
        self,
        plan: Plan,
        start: Position,
        micro_batch: int,
        accumulation: int,
        rank: int,
        ranks: int,
    ):
        self.plan = plan
        self.start = start
        self.micro_batch = micro_batch
        self.accumulation = accumulation
        self.rank = rank
        self.ranks = ranks

    def __iter__(self) -> Iterator[list[Position]]:
        positions = self.plan.positions(*self.start)
        share = self.micro_batch * self.accumulation
        while True:
            batch = [next(positions) for _ in range(share * self.ranks)]
            own = batch[self.rank * share : (self.rank + 1) * share]
            for first in range(0, share, self.micro_batch):
                yield own[first : first + self.micro_batch]


class EvaluationRows(Sampler[list[Position | None]]):
    """The batches of one rank over the first `rows` rows of epoch 0; every rank has as many
    batches, and rows that are missing from the last ones are filler."""

    def __init__(self, rows: int, batch: int, rank: int, ranks: int):
        self.rows = rows
        self.batch = batch
        self.rank = rank
        self.ranks = ranks

    def __iter__(self) -> Iterator[list[Position | None]]:
        for first in range(0, self.rows, self.batch * self.ranks):
            begin = first + self.rank * self.batch
            yield [(0, r) if r < self.rows else None for r in range(begin, begin + self.batch)]

    def __len__(self) -> int:
        return -(-self.rows // (self.batch * self.ranks))


def collate(rows: Sequence[Row]) -> Batch:
    """Stack rows to a batch."""
    return Batch(
        ids=torch.from_numpy(np.stack([r.framed.ids for r in rows])),
        modality=torch.from_numpy(np.stack([r.framed.modality for r in rows])),
        document=torch.from_numpy(np.stack([r.document for r in rows])),
        scored=torch.from_numpy(np.stack([r.framed.scored for r in rows])),
        payload=torch.from_numpy(np.stack([r.framed.payload for r in rows])),
        origins=[r.origins for r in rows],
    )


def make_loader(plan: Plan, rows: TrainingRows | EvaluationRows, workers: int) -> DataLoader[Row]:
    """A DataLoader over the rows; the batches are the same for any number of workers."""
    return DataLoader(
        RowDataset(plan),
        batch_sampler=rows,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
    )
