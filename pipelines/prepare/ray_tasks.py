"""Runs many tasks on a Ray cluster: a bounded number in flight, with retries that are counted.

A task whose node is lost runs again elsewhere, and costs nothing else. A task at which processes
die is sent to one node after the other, and ends the work by its name after MAX_DEATHS.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
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


@dataclass(eq=False)
class Job:
    """A call that is to be made on a node."""

    name: str
    """Tells a user what is worked on."""
    function: Callable[..., Any]
    """A function of a module. Its call may be repeated, and may run twice at a time where a lost
    node still runs. Its result is small."""
    arguments: Callable[[], tuple[Any, ...]]
    """Makes its arguments when it is sent."""
    deaths: int = 0
    lost_nodes: int = 0


class RayTasks:
    """Runs many jobs on the nodes of a cluster."""

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
        self._running: dict[Any, Job] = {}  # by task

    def run(self, jobs: deque[Job]) -> Iterator[tuple[Job, Any]]:
        """A job and its result, as they come.

        Args:
            jobs: what is to be done, the next one on the left. The caller may add jobs while it
                takes results.
        Raises:
            RuntimeError: where processes die at a job again and again, or there is no node.
            Exception: what a call raised.
        """
        try:
            while jobs or self._running:
                self._look_at_nodes()
                self._send(jobs)
                if not self._running:
                    time.sleep(WAIT_SECONDS)
                    continue
                for task in self._cluster.wait(list(self._running), WAIT_SECONDS):
                    job = self._running.pop(task)
                    try:
                        result = self._cluster.result(task)
                    except TaskDiedError as error:
                        self._count_death(job, error)
                        jobs.appendleft(job)
                        continue
                    yield job, result
                    self._send(jobs)
        finally:
            self._cluster.cancel(list(self._running))
            self._running.clear()

    @property
    def cpus(self) -> int:
        """CPUs of all nodes, and 1 where there are none now."""
        self._look_at_nodes()
        return max(1, sum((self._nodes or {}).values()))

    def _send(self, jobs: deque[Job]) -> None:
        """Send jobs until enough are in flight."""
        while jobs and len(self._running) < self._most_in_flight():
            job = jobs.popleft()
            task = self._cluster.submit(job.function, job.arguments(), self._node_for(job))
            self._running[task] = job

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
