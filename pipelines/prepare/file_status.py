"""The status of many files, asked for by several threads where each answer takes long.

On a filesystem of many machines an answer takes a fraction of a millisecond, in which a single
thread waits. On a local disk it takes microseconds, and threads would cost more than they save.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

THREADS = 16
SLOW_SECONDS = 5e-5
"""Mean time of an answer from which on threads ask."""
BATCH = 1024
"""Files whose status is asked for at once."""

Status = os.stat_result | OSError
Entry = TypeVar("Entry")


def with_status(
    entries: Iterable[tuple[str, Entry]],
) -> Iterator[tuple[str, Entry, Status]]:
    """Entries with the status of their file, in their order.

    Args:
        entries: path of a file, and whatever belongs to it.
    Yields:
        the path, what belongs to it, and the status, or the error in its place.
    """
    remaining = iter(entries)
    is_slow = False
    with ThreadPoolExecutor(THREADS, "status") as threads:
        while batch := list(islice(remaining, BATCH)):
            paths = [path for path, _ in batch]
            if is_slow:
                slices = [paths[first::THREADS] for first in range(THREADS)]
                by_slice = list(threads.map(_statuses, slices))
                statuses = [by_slice[n % THREADS][n // THREADS] for n in range(len(paths))]
            else:
                began = time.perf_counter()
                statuses = _statuses(paths)
                is_slow = time.perf_counter() - began > SLOW_SECONDS * len(paths)
            for (path, entry), status in zip(batch, statuses, strict=True):
                yield path, entry, status


def _statuses(paths: Sequence[str]) -> list[Status]:
    """The status of each file, links followed, or the error in its place."""
    statuses: list[Status] = []
    for path in paths:
        try:
            statuses.append(os.stat(path))
        except OSError as error:
            statuses.append(error)
    return statuses
