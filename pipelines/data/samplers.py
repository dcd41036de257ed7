"""Samplers: which rows of the plan make which batch."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice

from torch.utils.data import Sampler

from bytelm.pipelines.data.plan import Plan, Position


class TrainingRows(Sampler[list[Position]]):
    """The micro batches of one rank, without end, from a position of the plan on.

    A global batch is rows [n·G, (n+1)·G). Rank k of W takes the k-th G/W of it, in `accumulation`
    micro batches, so the global batches do not depend on the number of ranks.
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
            global_batch = list(islice(positions, share * self.ranks))
            rank_batch = global_batch[self.rank * share : (self.rank + 1) * share]
            for first in range(0, share, self.micro_batch):
                yield rank_batch[first : first + self.micro_batch]


class EvaluationRows(Sampler[list[Position | None]]):
    """The batches of one rank over the first `rows` rows of epoch 0.

    Every rank has the same number of batches; None pads the last ones.
    """

    def __init__(self, rows: int, batch: int, rank: int, ranks: int, done: Container[int] = ()):
        """
        Args:
            done: numbers of batches that are left out; batch n has the rows from n * batch on.
        """
        self.rows = rows
        self.batch = batch
        self.rank = rank
        self.ranks = ranks
        self._numbers = [n for n in range(-(-rows // batch)) if n not in done]

    def __iter__(self) -> Iterator[list[Position | None]]:
        for first in range(self.rank, len(self) * self.ranks, self.ranks):
            begin = self.batch * (self._numbers[first] if first < len(self._numbers) else self.rows)
            yield [(0, r) if r < self.rows else None for r in range(begin, begin + self.batch)]

    def __len__(self) -> int:
        return -(-len(self._numbers) // self.ranks)
