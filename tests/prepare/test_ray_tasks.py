"""Scheduling of tasks on Ray: retries, lost nodes, bounds. The cluster here is made up."""

from __future__ import annotations

import sys
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bytelm.pipelines.prepare import ray_tasks
from bytelm.pipelines.prepare.ray_cluster import RayCluster, TaskDiedError, ray_cluster
from bytelm.pipelines.prepare.ray_container_reader import RayContainerReader
from bytelm.pipelines.prepare.ray_tasks import Job, RayTasks


@dataclass(eq=False)
class MadeUpTask:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class MadeUpCluster(RayCluster):
    """Runs a task when it is waited for, unless a death is planned for its argument."""

    def __init__(self, cpus: dict[str, int], deaths: dict[int, list[TaskDiedError]]):
        self.cpus = cpus
        self.deaths = deaths
        self.sent: deque[MadeUpTask] = deque()
        self.most_in_flight = 0
        self.nodes_asked: list[str | None] = []
        self.cancelled: list[Any] = []
        self.calls: Counter[int] = Counter()

    def nodes(self) -> dict[str, int]:
        return self.cpus

    def submit(
        self, function: Callable[..., Any], arguments: Sequence[Any], node: str | None = None
    ) -> Any:
        task = MadeUpTask(function, tuple(arguments))
        self.calls[arguments[0]] += 1
        self.sent.append(task)
        self.most_in_flight = max(self.most_in_flight, len(self.sent))
        self.nodes_asked.append(node)
        return task

    def wait(self, tasks: Sequence[Any], seconds: float) -> list[Any]:
        return [self.sent.pop()]  # the last one first

    def result(self, task: Any) -> Any:
        deaths = self.deaths.get(task.arguments[0])
        if deaths:
            raise deaths.pop()
        return task.function(*task.arguments)

    def cancel(self, tasks: Sequence[Any]) -> None:
        self.cancelled += tasks


def killed() -> TaskDiedError:
    return TaskDiedError("its process died", is_node_lost=False)


def lost() -> TaskDiedError:
    return TaskDiedError("its node was lost", is_node_lost=True)


def jobs(count: int, function: Callable[..., Any] = float) -> deque[Job]:
    return deque(Job(f"job {i}", function, partial(tuple, [i])) for i in range(count))


def results(tasks: RayTasks, work: deque[Job]) -> list[tuple[str, Any]]:
    return sorted((job.name, result) for job, result in tasks.run(work))


def expected(count: int) -> list[tuple[str, float]]:
    return sorted((f"job {i}", float(i)) for i in range(count))


def test_each_job_gives_its_result_once_with_few_in_flight() -> None:
    cluster = MadeUpCluster({"a": 2, "b": 1}, {})
    assert results(RayTasks(cluster), jobs(50)) == expected(50)
    assert cluster.most_in_flight == 6


def test_jobs_that_are_added_while_results_come_are_done_first() -> None:
    cluster = MadeUpCluster({"a": 1}, {})
    work = jobs(9)
    names = []
    for job, result in RayTasks(cluster).run(work):
        names.append(job.name)
        if result == 1.0:
            work.appendleft(Job("later", float, lambda: (100,)))
    assert names[:3] == ["job 1", "later", "job 2"]
    assert len(names) == 10


def test_killed_tasks_run_again_and_on_other_nodes() -> None:
    cluster = MadeUpCluster({"a": 1, "b": 1}, {3: [killed(), killed()], 5: [killed()]})
    assert results(RayTasks(cluster), jobs(8)) == expected(8)
    assert (cluster.calls[3], cluster.calls[5]) == (3, 2)
    assert {node for node in cluster.nodes_asked if node} == {"a", "b"}


def test_a_job_at_which_processes_die_thrice_is_named() -> None:
    cluster = MadeUpCluster({"a": 1}, {0: [killed() for _ in range(9)]})
    with pytest.raises(RuntimeError, match="job 0 failed 3 times on Ray"):
        results(RayTasks(cluster), jobs(1))
    assert cluster.calls[0] == 3


def test_lost_nodes_do_not_count_as_deaths_and_are_bounded() -> None:
    cluster = MadeUpCluster({"a": 1}, {0: [lost() for _ in range(5)]})
    assert results(RayTasks(cluster), jobs(1)) == expected(1)
    cluster = MadeUpCluster({"a": 1}, {0: [lost() for _ in range(99)]})
    with pytest.raises(RuntimeError, match="job 0 failed 10 times"):
        results(RayTasks(cluster), jobs(1))


def test_an_error_of_a_call_ends_the_work_and_cancels_the_rest() -> None:
    cluster = MadeUpCluster({"a": 2}, {})
    with pytest.raises(ZeroDivisionError):
        results(RayTasks(cluster), jobs(4, lambda number: 1 / (3 - number)))
    assert len(cluster.cancelled) == 3


def test_a_cluster_without_a_node_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_tasks, "WAIT_SECONDS", 0.0)
    seconds = iter(range(0, 10_000, 50))
    cluster = MadeUpCluster({}, {})
    with pytest.raises(RuntimeError, match="no node with a CPU"):
        results(RayTasks(cluster, clock=lambda: float(next(seconds))), jobs(1))


def test_tars_are_read_by_tasks_and_come_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.tar" for number in range(70)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo(f"{number}.txt"))
    cluster = MadeUpCluster({"a": 2, "b": 1}, {})
    reader = RayContainerReader(RayTasks(cluster))
    tars = reader.read_tars([str(path) for path in paths], 10)
    assert [tar.flaws[0].name for tar in tars] == [f"{number}.txt" for number in range(70)]
    assert cluster.calls.total() == 35


def test_a_node_that_does_not_see_a_tar_is_named() -> None:
    reader = RayContainerReader(RayTasks(MadeUpCluster({"a": 1}, {})))
    with pytest.raises(ValueError, match=r"node .* does not see /nowhere/else"):
        list(reader.read_tars(["/nowhere/else/a.tar"], 10))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers there"),
        ("ray://127.0.0.1:1", "no Ray cluster answers there"),
        ("ray://somewhere", "is no address"),
        ("host:port", "--on host:port"),
    ],
)
def test_an_address_without_a_cluster_is_refused(address: str, message: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=message), ray_cluster(address, 1):
        pass


def test_a_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"bytelm\[ray\]"), ray_cluster("ray", 1):
        pass
