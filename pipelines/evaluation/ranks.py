"""Ranks that share a work whose parts are added up at its end, over gloo.

Training has a process group of its own (`training/engine.py`), which exchanges tensors in every
step. Here ranks exchange plain objects, a few times, so gloo does for GPUs too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from bytelm.pipelines.errors import DamageError, OnAllRanksError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

WAIT_SECONDS = 600.0
"""Time for which a rank waits for the slowest one before it fails, as `train.rank_timeout`; a rank
that has worked for longer waits for as long as it worked."""
_PEER_HAS_ENDED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Words of gloo's errors."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work."""

    rank: int = 0
    count: int = 1
    since: float = field(default_factory=time.monotonic)
    """Time at which the ranks joined."""

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Every `count`-th item, from this rank's own on: the parts of all ranks are the whole."""
        return islice(items, self.rank, None, self.count)

    def gather(self, part: T) -> list[T]:
        """The parts of all ranks, by rank. Every rank has to call it.

        Raises OnAllRanksError where another rank has ended, or does not come in time.
        """
        if self.count == 1:
            return [part]
        import torch.distributed as dist

        parts: list[Any] = [None] * self.count
        seconds = max(WAIT_SECONDS, time.monotonic() - self.since)
        try:
            dist.monitored_barrier(timeout=timedelta(seconds=seconds))
            dist.all_gather_object(parts, part)
        except RuntimeError as error:
            if any(words in str(error) for words in _PEER_HAS_ENDED):
                raise OnAllRanksError("ended, since another rank has ended") from error
            if "monitoredBarrier" in str(error):
                cause = f"another rank has not come within {seconds:,.0f} s: it hangs, or is gone"
                raise OnAllRanksError(cause) from error
            raise OnAllRanksError(f"the ranks cannot exchange their parts: {error}") from error
        return parts

    def sum(self, values: list[Any], dtype: torch.dtype) -> list[Any]:
        """The sum of each value over ranks. Every rank has to call it."""
        import torch

        parts = [torch.tensor(part, dtype=dtype) for part in self.gather(values)]
        return torch.stack(parts).sum(0, dtype=dtype).tolist()

    def raise_together(self, error: ValueError | None) -> None:
        """Raise the first error that any rank met, once for all of them. Every rank has to call it.

        Rank 0 raises it, and its line says which rank met it; the others end with its status.
        """
        for rank, met in enumerate(self.gather((error, isinstance(error, DamageError)))):
            cause, is_damage = met
            if cause is None:
                continue
            if self.rank:
                raise SystemExit(1 if is_damage else 2)
            kind = DamageError if is_damage else ValueError
            raise cause if rank == 0 else kind(f"rank {rank}: {cause}")


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the ranks that a launcher's variables describe, and leave them after the body; without
    a launcher there is one.

    Raises ValueError if this machine has GPUs, but fewer than ranks.
    """
    if "RANK" not in os.environ:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus and local_rank >= gpus:
        raise ValueError(
            f"more processes were started on this machine than its GPUs, {gpus}: start one for "
            f"each (--processes {gpus}), or set CUDA_VISIBLE_DEVICES= to compute without"
        )
    if gpus:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("gloo", timeout=timedelta(seconds=WAIT_SECONDS))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:  # threads of gloo that live on abort the process at its end
        dist.destroy_process_group()
