"""Ranks that share a work whose parts are put together at its end, over gloo.

Training has a process group of its own (`training/engine.py`), which exchanges tensors in every
step. Here ranks exchange plain objects, a few times, so gloo does for GPUs too. They meet at a
counter of the launcher's store before each exchange: gloo itself cannot wait longer for rank 0
than for the time that its group was made with, and tells no other rank who is missing.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from bytelm.pipelines.errors import DamageError, OnAllRanksError

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

T = TypeVar("T")

WAIT_SECONDS = 600.0
"""Time for which a rank waits for the slowest one before it fails, as `train.rank_timeout`; a rank
that has worked for longer waits for as long as it worked."""
POLL_SECONDS = 0.02, 1.0
"""Shortest and longest pause between two looks at the counter."""
_LATE = "late"
_ENDED = "ended"
"""Key in the store of the number of ranks that an error ended, and prefix of a key for each."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work."""

    rank: int = 0
    count: int = 1
    store: Store | None = None
    """Where ranks meet; None with one rank."""
    since: float = field(default_factory=time.monotonic)
    """Time at which the ranks joined."""
    _meetings: Iterator[int] = field(default_factory=itertools.count)

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Every `count`-th item, from this rank's own on: the parts of all ranks are the whole."""
        return itertools.islice(items, self.rank, None, self.count)

    def gather(self, part: T) -> list[T]:
        """The parts of all ranks, by rank. Every rank has to call it.

        Raises OnAllRanksError where another rank has ended, or does not come in time.
        """
        if self.store is None:
            return [part]
        import torch.distributed as dist

        self._meet(self.store)
        parts: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(parts, part)
        except RuntimeError as error:
            raise OnAllRanksError(f"the ranks cannot exchange their parts: {error}") from error
        return parts

    def sum(self, values: list[Any], dtype: torch.dtype) -> list[Any]:
        """The sum of each value over ranks. Every rank has to call it."""
        import torch

        parts = [torch.tensor(part, dtype=dtype) for part in self.gather(values)]
        return torch.stack(parts).sum(0, dtype=dtype).tolist()

    def together(self, work: Callable[[], T]) -> T:
        """The result of this rank's work, if no rank's work raises a ValueError.

        Every rank has to call it. Rank 0 raises the first error, once for all of them, and its
        line says which rank met it; the others end with its status.
        """
        result, error = None, None
        try:
            result = work()
        except ValueError as own_error:
            error = own_error
        for rank, met in enumerate(self.gather((error, isinstance(error, DamageError)))):
            cause, is_damage = met
            if cause is None:
                continue
            if self.rank:
                raise SystemExit(1 if is_damage else 2)
            kind = DamageError if is_damage else ValueError
            raise cause if rank == 0 else kind(f"rank {rank}: {cause}")
        return cast(T, result)

    def require_shared(self, folder: Path) -> None:
        """Raise ValueError where a rank does not see in a folder what rank 0 writes there.

        Every rank has to call it; the folder is made where it is missing.
        """
        if self.store is None:
            return
        token = folder / f".bytelm-{self.gather(secrets.token_hex(8))[0]}"

        def look() -> None:
            if not token.exists():
                raise ValueError(
                    f"{folder} is another folder than that of rank 0: give one that the machines "
                    "of all ranks share"
                )

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()

        self.together(write if self.rank == 0 else lambda: None)
        try:
            self.together(look)
        finally:
            if self.rank == 0:
                token.unlink(missing_ok=True)

    def _meet(self, store: Store) -> None:
        """Wait until every rank has come here as often as this one."""
        seconds = max(WAIT_SECONDS, time.monotonic() - self.since)
        meeting = next(self._meetings)
        causes: list[str] = []
        # A store answers never where its host, rank 0, is stopped: the main thread waits in time.
        waiting = threading.Thread(
            target=lambda: causes.extend(self._wait(store, meeting, seconds)), daemon=True
        )
        waiting.start()
        waiting.join(seconds + 2 * POLL_SECONDS[1])
        late = f"within {seconds:,.0f} s: it hangs, or is gone"
        if waiting.is_alive():
            raise self._said_by(1, f"rank 0 has not come {late}")
        for cause in causes:
            if cause != _LATE:
                raise OnAllRanksError(cause)
            missing = self._missing(store, meeting)
            first_here = min(set(range(self.count)) - set(missing))
            raise self._said_by(first_here, f"{_names(missing)} not come {late}")

    def _wait(self, store: Store, meeting: int, seconds: float) -> Iterator[str]:
        """Wait at a meeting; yields why it does not take place, if so."""
        deadline, (pause, longest) = time.monotonic() + seconds, POLL_SECONDS
        try:
            store.set(f"{meeting}/{self.rank}", "here")
            store.add(f"{meeting}", 1)
            while store.add(f"{meeting}", 0) < self.count:
                if store.add(_ENDED, 0):
                    ended = [r for r in range(self.count) if store.check([f"{_ENDED}/{r}"])]
                    yield f"ended, since {_names(ended)} ended"
                    return
                if time.monotonic() >= deadline:
                    yield _LATE
                    return
                time.sleep(pause)
                pause = min(2 * pause, longest)
        except RuntimeError:  # its host is rank 0, or an agent that ends with its ranks
            yield "ended, since rank 0 or its launcher has ended"

    def _said_by(self, speaker: int, error: str) -> RuntimeError:
        """An error that is printed by one rank: rank 0 prints those that all raise."""
        is_said_here = self.rank == speaker != 0
        return RuntimeError(error) if is_said_here else OnAllRanksError(error)

    def _missing(self, store: Store, meeting: int) -> list[int]:
        return [r for r in range(self.count) if not store.check([f"{meeting}/{r}"])]


def _names(ranks: list[int]) -> str:
    """Some ranks as the subject of a sentence, with its verb: `rank 1 has`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} has"
    return f"ranks {', '.join(map(str, ranks[:16]))}{' and others' * (len(ranks) > 16)} have"


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
    timeout = timedelta(seconds=WAIT_SECONDS)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    meetings = dist.PrefixStore("bytelm", store)
    try:
        yield Ranks(rank, size, meetings if size > 1 else None)
    except BaseException:
        _tell_ended(meetings, rank)
        raise
    finally:  # threads of gloo that live on abort the process at its end
        dist.destroy_process_group()


def _tell_ended(store: Store, rank: int) -> None:
    """Tell the other ranks that an error ends this one, if they can still be told."""

    def tell() -> None:
        try:
            store.set(f"{_ENDED}/{rank}", "yes")
            store.add(_ENDED, 1)
        except RuntimeError:  # the store has ended
            return

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(POLL_SECONDS[1])
