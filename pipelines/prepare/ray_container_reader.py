"""Downloads and the reading of tars and tables by tasks on a Ray cluster, while this process
lists the sources."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bytelm.pipelines.prepare.container_reader import (
    ContainerReader,
    Download,
    TableQuestion,
    download,
)
from bytelm.pipelines.prepare.ray_nodes import call_on_node, inspect_on_node
from bytelm.pipelines.prepare.ray_tasks import Job, RayTasks
from bytelm.pipelines.prepare.table_inspection import TableInspection
from bytelm.pipelines.prepare.webdataset_tars import TarContents, read_webdataset_tar
from bytelm.pipelines.runtime.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

MAX_CALLS = 16
"""Tars or tables of a task."""
TASKS_PER_CPU = 8
"""Tasks that are worth having, so that all CPUs end at about the same time."""


class RayContainerReader(ContainerReader):
    """Does many at a time, on the nodes."""

    def __init__(self, tasks: RayTasks, console: Console | None = None):
        """
        Args:
            tasks: runs the tasks.
            console: shows the progress; None shows nothing.
        """
        self._tasks = tasks
        self._console = console

    def download(self, downloads: Sequence[Download]) -> None:
        """See ContainerReader."""
        for _ in self._results(download, downloads, 1, "downloads"):
            pass

    def read_tars(self, paths: Sequence[str], max_member_bytes: int) -> Iterator[TarContents]:
        """See ContainerReader."""
        calls = [(path, max_member_bytes) for path in paths]
        return self._results(read_webdataset_tar, calls, MAX_CALLS, "tars")

    def inspect_tables(self, questions: Sequence[TableQuestion]) -> Iterator[TableInspection]:
        """See ContainerReader."""
        return self._results(inspect_on_node, questions, MAX_CALLS, "tables")

    def _results(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        max_calls: int,
        unit: str,
    ) -> Iterator[Any]:
        """The results of a function's calls, in order.

        Args:
            function: see call_on_node.
            calls: the arguments of each.
            max_calls: the most calls of a task.
            unit: what the progress counts.
        """
        size = max(1, min(max_calls, len(calls) // (TASKS_PER_CPU * self._tasks.cpus)))
        starts = range(0, len(calls), size)
        jobs = [_job(function, calls[start : start + size]) for start in starts]
        numbers = {job: number for number, job in enumerate(jobs)}
        ready: dict[int, list[Any]] = {}
        next_number = 0
        with Progress(self._console, len(calls), unit) as progress:
            for job, results in self._tasks.run(deque(jobs)):
                progress.add(len(results))
                ready[numbers[job]] = results
                while next_number in ready:
                    yield from ready.pop(next_number)
                    next_number += 1


def _job(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Job:
    """A task that makes some calls; it is named by the first path."""
    return Job(str(calls[0][0]), call_on_node, partial(tuple, [function, list(calls)]))
