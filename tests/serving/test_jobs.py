"""Jobs of the playground run one at a time, wait in order, and stop when they are told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bytelm.pipelines.serving.jobs import Job, JobQueue, QueueFullError

PATIENCE = 30


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    queue = JobQueue(max_waiting=2)
    yield queue
    queue.close(PATIENCE)


class Draw:
    """Work that goes on until it is stopped, or until `may_end` is set."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> str:
        self.has_begun.set()
        job.show("half")
        while not self.may_end.wait(0.001):
            job.check()
        return "whole"


def test_a_job_shows_what_it_has_and_returns_its_result(queue: JobQueue) -> None:
    work = Draw()
    job = queue.submit(work)
    assert work.has_begun.wait(PATIENCE)
    work.may_end.set()
    assert job.wait(PATIENCE)
    assert (job.shown, job.result, job.stopped, job.error) == ("half", "whole", "", "")


def test_jobs_run_one_at_a_time_in_the_order_in_which_they_came(queue: JobQueue) -> None:
    works = [Draw() for _ in range(3)]
    jobs = [queue.submit(work) for work in works]
    assert works[0].has_begun.wait(PATIENCE)
    assert [job.place for job in jobs] == [0, 1, 2]
    works[0].may_end.set()
    assert works[1].has_begun.wait(PATIENCE)
    assert [job.place for job in jobs] == [0, 0, 1]
    assert not works[2].has_begun.is_set()


def test_a_running_job_stops_at_its_next_check_and_keeps_what_it_showed(queue: JobQueue) -> None:
    work = Draw()
    job = queue.submit(work)
    assert work.has_begun.wait(PATIENCE)
    job.stop()
    assert job.wait(PATIENCE)
    assert (job.shown, job.result, job.stopped) == ("half", None, "Stopped.")


def test_a_waiting_job_leaves_the_queue_at_once(queue: JobQueue) -> None:
    works = [Draw() for _ in range(3)]
    jobs = [queue.submit(work) for work in works]
    assert works[0].has_begun.wait(PATIENCE)
    jobs[1].stop()
    assert jobs[1].wait(0)
    assert jobs[1].stopped == "Stopped."
    assert [job.place for job in jobs] == [0, 0, 1]
    works[0].may_end.set()
    assert works[2].has_begun.wait(PATIENCE)
    assert not works[1].has_begun.is_set()


def test_a_full_queue_says_so(queue: JobQueue) -> None:
    works = [Draw() for _ in range(3)]
    queue.submit(works[0])
    assert works[0].has_begun.wait(PATIENCE)
    for work in works[1:]:
        queue.submit(work)
    with pytest.raises(QueueFullError, match="2 requests wait"):
        queue.submit(Draw())


def test_a_job_ends_at_its_limit_of_time() -> None:
    queue = JobQueue(seconds=0.05)
    job = queue.submit(Draw())
    assert job.wait(PATIENCE)
    assert job.stopped == "Stopped at the limit of 0.05 seconds."
    assert job.shown == "half"
    queue.close(PATIENCE)


def test_a_users_mistake_is_told_and_a_failure_leaves_the_queue_alive(
    queue: JobQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistake(job: Job) -> None:
        raise ValueError("give a smaller file")

    def failure(job: Job) -> None:
        raise MemoryError("no room")

    jobs = [queue.submit(mistake), queue.submit(failure)]
    assert all(job.wait(PATIENCE) for job in jobs)
    assert jobs[0].error == "give a smaller file"
    assert jobs[1].error == "The server failed: MemoryError: no room"
    assert capsys.readouterr().err == "bytelm serve: unexpected MemoryError: no room\n"
    work = Draw()
    work.may_end.set()
    job = queue.submit(work)
    assert job.wait(PATIENCE)
    assert job.result == "whole"


def test_the_end_of_the_server_stops_all_jobs() -> None:
    queue = JobQueue()
    works = [Draw(), Draw()]
    jobs = [queue.submit(work) for work in works]
    assert works[0].has_begun.wait(PATIENCE)
    queue.close(PATIENCE)
    assert [job.stopped for job in jobs] == ["The server ends.", "The server ends."]
    assert not works[1].has_begun.is_set()
