"""Which rows of the plan make which batch."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from bytelm.pipelines.data.plan import Plan

Position = tuple[int, int]
"""Epoch, and row in it."""


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
