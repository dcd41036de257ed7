"""Rests of work in the background, by a clock that a test moves."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from bytelm.pipelines.storage import background
from bytelm.pipelines.storage.background import Throttle

LONG_SHARE = 1e-7
"""At which a rest after any work takes longer than a test."""


@dataclass
class Clock:
    """Time and processor time, and the rests that were taken."""

    now: float = 100.0
    processor: float = 0.0
    rests: list[float] = field(default_factory=list)

    def work(self, processor: float, elapsed: float) -> None:
        self.processor += processor
        self.now += elapsed

    def wait(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(background, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def throttle(clock: Clock, share: float, seconds: float = math.inf) -> Throttle:
    made = Throttle(share, lambda: clock.processor, seconds)
    # An event that takes no time and keeps what was asked of it.
    made._hurried.wait = clock.wait  # type: ignore[method-assign, assignment]  # has no answer
    return made


def test_work_and_rests_together_take_the_share(clock: Clock) -> None:
    """The first call tells where the work begins. Time for which the work itself waited counts, and
    what it waits too long is not made up for."""
    limited = throttle(clock, 0.25)
    clock.work(5, 5)
    limited.rest()
    for processor, elapsed in ((1, 1), (1, 2), (1, 9), (2, 2)):
        clock.work(processor, elapsed)
        limited.rest()
    assert clock.rests == [3, 2, 6]


def test_rests_end_at_a_limit(clock: Clock) -> None:
    limited = throttle(clock, 0.25, seconds=10)
    for _ in range(4):
        limited.rest()
        clock.work(2, 2)
    assert clock.rests == [6]
    limited = throttle(clock, 0.25, seconds=3)
    limited.rest()
    clock.work(2, 2)
    limited.rest()
    assert clock.rests == [6, 1]


def test_no_limit_has_no_rests(clock: Clock) -> None:
    unlimited = throttle(clock, math.inf)
    for _ in range(3):
        unlimited.rest()
        clock.work(1, 1)
    assert clock.rests == []


def test_whoever_waits_ends_a_rest_and_all_later_ones() -> None:
    limited = Throttle(LONG_SHARE, time.thread_time)
    rests = 0

    def work() -> None:
        nonlocal rests
        for _ in range(5):
            sum(range(10_000))
            limited.rest()
            rests += 1

    thread = threading.Thread(target=work)
    thread.start()
    while not rests:
        time.sleep(0.001)
    thread.join(0.1)
    assert rests == 1, "the first one only begins"
    limited.hurry()
    thread.join()
    assert rests == 5
