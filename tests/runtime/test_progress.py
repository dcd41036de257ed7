"""Progress: silent at first, then speed and time left, and a warning before hours."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bytelm.pipelines.prepare.progress import PrepareProgress
from bytelm.pipelines.runtime import progress
from bytelm.pipelines.runtime.progress import Progress, duration, tracked


class Clock:
    """Stands in for `time`; the test moves it."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def plain() -> Console:
    return Console(file=io.StringIO(), width=30)


def shown(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_line_comes_after_two_seconds_and_then_every_ten(clock: Clock) -> None:
    console = plain()
    with Progress(console, 1_200) as counting:
        for _ in range(25):
            clock.now += 1
            counting.add(40)
    assert shown(console) == [
        "80 of 1,200 bytes, 40.0 B/s, 28 s left",
        "480 of 1,200 bytes, 40.0 B/s, 18 s left",
        "880 of 1,200 bytes, 40.0 B/s, 8 s left",
    ]


def test_a_start_that_takes_long_is_not_counted(clock: Clock) -> None:
    """The first byte waits for the compilation of kernels."""
    console = plain()
    with Progress(console, 1_000) as counting:
        clock.now += 40
        counting.add(1)
        for _ in range(5):
            clock.now += 1
            counting.add(100)
    assert shown(console) == ["201 of 1,000 bytes, 100.0 B/s, 8 s left"]


def test_short_work_and_work_without_a_console_print_nothing(clock: Clock) -> None:
    console = plain()
    with Progress(console, 3) as counting, Progress(None, 3) as silent:
        for _ in range(3):
            clock.now += 0.5
            counting.add(1)
            silent.add(1)
    assert shown(console) == []


def test_hours_are_announced_once(clock: Clock) -> None:
    console = plain()
    with Progress(console, 120_000) as counting:
        for _ in range(5):
            clock.now += 10
            counting.add(120)
    warnings = [line for line in shown(console) if "Ctrl-C" in line]
    assert warnings == ["this takes about 3 h at 12.0 B/s: Ctrl-C to stop"]
    assert len(shown(console)) == 5


def test_nothing_is_expected_from_the_first_bytes(clock: Clock) -> None:
    """The first step of learning waits for kernels, too."""
    console = plain()
    with Progress(console, 1_000_000) as counting:
        for size in (10, 10, 10_000, 10_000):
            clock.now += 5
            counting.add(size)
    assert shown(console) == [
        "20 of 1,000,000 bytes, 2.0 B/s",
        "20,020 of 1,000,000 bytes, 1.3 kB/s, 12 min left",
    ]


def test_a_terminal_has_a_bar_and_the_warning(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Progress(console, 10**9) as counting:
        for _ in range(4):
            clock.now += 5
            counting.add(10)
    text = "".join(shown(console))
    assert "Ctrl-C to stop" in text
    assert "2.0 B/s" in text


def test_units_that_are_no_bytes_have_a_speed_in_both(clock: Clock) -> None:
    console = plain()
    with PrepareProgress(console, 10, 4) as counting:
        clock.now += 4
        counting.advance(8_000_000)
    assert shown(console) == [
        "resuming after 4 of 10 ",
        "documents",
        "5 of 10 documents, 2.0 MB/s, 20 s left",
    ]
    console = plain()
    with Progress(console, 4, "shards") as counting:
        clock.now += 4
        counting.add(2)
    assert shown(console) == ["2 of 4 shards, 0.5 shards/s, 4 s left"]


def test_tracked_items_come_as_they_are() -> None:
    assert list(tracked(iter("abc"), 3, "letters")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (10_800, "3 h"), (1e7, "116 days")],
)
def test_durations_are_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
