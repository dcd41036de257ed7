"""Runs many tasks on a Ray cluster: a bounded number in flight, with retries that are counted.

A task whose node is lost runs again elsewhere, and costs nothing else. A task at which processes
die is sent to one node after the other, and ends the work by its name after MAX_DEATHS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bytelm.pipelines.prepare.ray_cluster import RayCluster, TaskDiedError

if TYPE_CHECKING:
    from rich.console import Console

MAX_DEATHS = 3
"""Deaths of a task's processes, on different nodes where there are several, that end the work."""
MAX_LOST_NODES = 10
"""Nodes lost under one task that end the work."""
TASKS_PER_CPU = 2
"""Tasks in flight: one that runs, and one that waits for it."""
WAIT_SECONDS = 1.0
LOOK_SECONDS = 5.0
"""Time between two looks at the nodes."""
MAX_SECONDS_WITHOUT_NODE = 300.0


@dataclass
class Job:
    """A call that is to be made on a node."""

    name: str
    """Tells a user what is worked on."""
    arguments: tuple[Any, ...]
    deaths: int = 0
    lost_nodes: int = 0


class RayTasks:
    """Calls a function for each of many jobs, on the nodes of a cluster."""

    def __init__(
        self,
        cluster: RayCluster,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
            cluster: where tasks run.
            console: shows nodes that come and go, and retries; None shows nothing.
            clock: seconds, from any start.
        """
        self._cluster = cluster
        self._console = console
        self._clock = clock
        self._nodes: dict[str, int] | None = None
        self._next_look = 0.0
        self._last_seen = clock()
        self._running: dict[Any, int] = {}  # number of the job by task

    def run(
        self,
        function: Callable[..., Any],
        jobs: Sequence[Job],
        arguments_of: Callable[[Job], tuple[Any, ...]] = lambda job: job.arguments,
    ) -> Iterator[tuple[int, Any]]:
        """Number of a job and the function's result, as they come.

        Args:
            function: a function of a module; its call may be repeated, and may run twice at a time
                where a lost node still runs.
            jobs: calls whose results are small.
            arguments_of: the arguments of a job when it is sent.
        Raises:
            RuntimeError: where processes die at a job again and again, or there is no node.
            Exception: what a call raised.
        """
        waiting = list(range(len(jobs)))[::-1]
        try:
            while waiting or self._running:
                self._look_at_nodes()
                while waiting and len(self._running) < self._most_in_flight():
                    number = waiting.pop()
                    job = jobs[number]
                    task = self._cluster.submit(function, arguments_of(job), self._node_for(job))
                    self._running[task] = number
                if not self._running:
                    time.sleep(WAIT_SECONDS)
                    continue
                for task in self._cluster.wait(list(self._running), WAIT_SECONDS):
                    number = self._running.pop(task)
                    try:
                        result = self._cluster.result(task)
                    except TaskDiedError as error:
                        self._count_death(jobs[number], error)
                        waiting.append(number)
                        continue
                    yield number, result
        finally:
            self._cluster.cancel(list(self._running))
            self._running.clear()

    def _most_in_flight(self) -> int:
        return TASKS_PER_CPU * sum((self._nodes or {}).values())

    def _node_for(self, job: Job) -> str | None:
        """A node for a job that died: another one each time."""
        nodes = sorted(self._nodes or {})
        return nodes[job.deaths % len(nodes)] if job.deaths and nodes else None

    def _look_at_nodes(self) -> None:
        """Look now and then which nodes there are; RuntimeError where none comes."""
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        nodes = self._cluster.nodes()
        if nodes != self._nodes:
            self._say(f"Ray: nodes: {len(nodes)}, CPUs: {sum(nodes.values())}")
        self._nodes = nodes
        if nodes:
            self._last_seen = now
        elif now - self._last_seen >= MAX_SECONDS_WITHOUT_NODE:
            raise RuntimeError(
                f"the Ray cluster has no node with a CPU for {MAX_SECONDS_WITHOUT_NODE:.0f} s: "
                "add nodes, and run the command again, which goes on where it stopped"
            )

    def _count_death(self, job: Job, error: TaskDiedError) -> None:
        """Count a task that ended without a result; RuntimeError where it was one too many."""
        self._next_look = 0.0
        self._say(f"Ray: {job.name} is tried again: {error}")
        if error.is_node_lost:
            job.lost_nodes += 1
        else:
            job.deaths += 1
        if job.deaths == MAX_DEATHS or job.lost_nodes == MAX_LOST_NODES:
            times = job.deaths if job.deaths == MAX_DEATHS else job.lost_nodes
            raise RuntimeError(
                f"{job.name} failed {times} times on Ray ({error}): leave it out with --exclude, "
                "or give the nodes more memory; what is finished is kept"
            )

    def _say(self, line: str) -> None:
        if self._console:
            self._console.print(line, highlight=False, soft_wrap=True)
