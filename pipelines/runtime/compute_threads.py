"""Work of a model on a CPU in threads of which each computes alone.

The number of threads that share a matrix product decides how its sums are grouped, and so its last
digits. A batch that one thread computes has the same digits on any number of cores and ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from bytelm.pipelines.runtime.device import this_device

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], most: int
) -> Iterator[tuple[T, R]]:
    """Each item with the function's result, in order.

    Each of as many threads as torch would use computes its items alone; the items are read in this
    thread, at most as many ahead as there are threads. On a GPU this thread computes them all.

    Args:
        most: threads at most, by the memory that an item takes.
    """
    if this_device().type != "cpu":
        for item in items:
            yield item, function(item)
        return
    with (
        single_threaded() as usual,
        ThreadPoolExecutor(
            threads := min(usual, most), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):
        waiting: deque[tuple[T, Future[R]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > threads:
                    done, result = waiting.popleft()
                    yield done, result.result()
            for done, result in waiting:
                yield done, result.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def single_threaded() -> Iterator[int]:
    """Let torch compute each product of the body in one thread; gives the number of before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
