"""How OpenMP's threads wait, alone and beside other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bytelm.pipelines.runtime.threads import (
    FREE_READINGS,
    LEAST_READY,
    USERS_VARIABLES,
    ContentionMonitor,
    RunDelayClock,
    share_cores,
)
from bytelm.pipelines.storage.background import lower_priority

BUSY = "while True: pass"
THREADS = """
import os, time
def count(): return len(os.listdir("/proc/self/task"))
def wait_for(condition):
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end, "the state did not come"
        time.sleep(0.01)
"""
THROTTLE = (
    THREADS
    + """
from bytelm.pipelines.runtime.threads import SpinThrottle
throttle = SpinThrottle()
throttle.set(True)
assert count() == 1, "torch is not loaded"
import torch
values = torch.ones(1 << 20)
total = values.sum()
before = count()
for _ in range(3):
    throttle.set(True)
    throttle.set(True)
    wait_for(lambda: count() == before + 1 + len(os.sched_getaffinity(0)))
    assert values.sum() == total
    throttle.set(False)
    wait_for(lambda: count() == before)
"""
)
BESIDE_OTHERS = (
    THREADS
    + """
import threading, torch
from bytelm.pipelines.runtime.threads import share_cores
share_cores()
values = torch.ones(1 << 20)
def is_throttled():
    values.add_(1)
    return "throttle" in [thread.name for thread in threading.enumerate()]
wait_for(is_throttled)
"""
)
COMMAND = """
import sys, threading
from bytelm.pipelines.cli.main import main
sys.argv = ["bytelm", "plan", "no-such-file.yaml"]
main()
print("share-cores" in [thread.name for thread in threading.enumerate()])
"""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


def test_threads_that_wait_for_cores_show_competition_at_once() -> None:
    monitor = ContentionMonitor()
    assert not monitor.update(delayed=0.02, running=1.98)
    assert not monitor.update(delayed=0.2, running=1.8)
    assert monitor.update(delayed=1.0, running=1.0)


def test_competition_is_over_after_some_free_readings_in_a_row() -> None:
    monitor = ContentionMonitor()
    monitor.update(delayed=1.0, running=1.0)
    for _ in range(FREE_READINGS - 1):
        assert monitor.update(delayed=0.0, running=2.0)
    assert monitor.update(delayed=0.2, running=1.8), "between the two shares nothing changes"
    for _ in range(FREE_READINGS - 1):
        assert monitor.update(delayed=0.0, running=2.0)
    assert not monitor.update(delayed=0.0, running=2.0)


def test_a_process_that_hardly_runs_shows_no_competition() -> None:
    assert not ContentionMonitor().update(delayed=0.05, running=0.001)


@linux_only
def test_the_clock_counts_a_thread_that_runs() -> None:
    clock = RunDelayClock()
    total = sum(range(3_000_000))
    delayed, running = clock.lap()
    assert total
    assert running > 0
    assert delayed >= 0


@linux_only
def test_the_clock_leaves_out_threads_that_give_way() -> None:
    started, end = threading.Event(), threading.Event()

    def work() -> None:
        lower_priority(5)
        started.set()
        while not end.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    clock, used = RunDelayClock(), time.process_time()
    while time.process_time() - used < 0.3:
        time.sleep(0.01)
    _, running = clock.lap()  # this thread may be kept waiting: its delay says nothing here
    end.set()
    thread.join()
    assert running < LEAST_READY


@linux_only
def test_the_throttle_starts_and_ends_a_team_and_changes_no_result() -> None:
    subprocess.run([sys.executable, "-c", THROTTLE], check=True, env=_free_environment())


@linux_only
@pytest.mark.long
def test_threads_sleep_soon_beside_busy_processes() -> None:
    with _busy_processes(2 * len(os.sched_getaffinity(0))):
        subprocess.run([sys.executable, "-c", BESIDE_OTHERS], check=True, env=_free_environment())


@pytest.mark.parametrize("name", USERS_VARIABLES)
def test_a_choice_of_the_users_stays(name: str) -> None:
    before = threading.active_count()
    share_cores({name: "x"})
    assert threading.active_count() == before


@linux_only
def test_a_command_watches_its_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND],
        capture_output=True,
        text=True,
        check=True,
        env=_free_environment(),
    )
    assert done.stdout == "True\n"


def _free_environment() -> dict[str, str]:
    """The environment without the user's choices about OpenMP."""
    mine = (*USERS_VARIABLES, "OMP_NUM_THREADS", "OMP_THREAD_LIMIT")
    return {name: value for name, value in os.environ.items() if name not in mine}


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
