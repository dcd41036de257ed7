"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere.

Work of under SILENT_SECONDS prints no line. Work that will take long says so once, with its speed,
so that a user can stop it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

SILENT_SECONDS = 2.0
LINE_SECONDS = 10.0
"""Seconds between two lines."""
START_SHARE = 0.05
"""Share of the work below which a first unit that takes SILENT_SECONDS is not counted in the speed,
since most of its time went into the start, as the compilation of kernels, and below which nothing
is expected before LINE_SECONDS: a few bytes may take as long as the next thousands."""
LONG_SECONDS = 1800.0
"""Expected duration from which a warning is due."""
BYTES = "bytes"
T = TypeVar("T")


class Progress:
    """Counts units of work that are done, and shows their number, their speed and the time left."""

    def __init__(self, console: Console | None, total: int, unit: str = BYTES, done: int = 0):
        """
        Args:
            console: shows the progress; None shows nothing.
            total: units of the whole work.
            unit: what is counted, in the plural.
            done: units that were done before.
        """
        self._console = console
        self._bar = _bar(console) if console and console.is_terminal else None
        if self._bar:
            self._task = self._bar.add_task("", speed="")
        self.begin(total, unit, done)

    def begin(self, total: int, unit: str, done: int) -> None:
        """Count work of another unit from now on; the arguments are those of the constructor."""
        self._total = total
        self._unit = unit
        self._done = self._done_at_start = done
        self._bytes = 0
        self._is_warned = False
        self._is_first = True
        self._start_time = time.monotonic()
        self._next_line = self._start_time + SILENT_SECONDS
        if self._bar:
            self._bar.reset(self._task, description=unit, total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def add(self, count: int, size: int = 0) -> None:
        """Count `count` more units, of `size` bytes where the unit is another one."""
        self._done += count
        self._bytes += count if self._unit == BYTES else size
        if self._console is None:
            return
        now = time.monotonic()
        if self._is_slow_start(now):
            self._done_at_start, self._bytes = self._done, 0
            self._start_time, self._next_line = now, now + SILENT_SECONDS
        self._is_first = False
        if self._bar:
            self._bar.update(self._task, completed=self._done, speed=self._speed(now))
        if now < self._next_line:
            return
        left = self._seconds_left(now)
        self._warn_if_long(left, now)
        if not self._bar:
            expected = "" if left is None else f", {duration(left)} left"
            self._console.print(
                f"{self._done:,} of {self._total:,} {self._unit}, {self._speed(now)}{expected}",
                highlight=False,
                soft_wrap=True,
            )
        self._next_line = now + LINE_SECONDS

    def _is_slow_start(self, now: float) -> bool:
        done = self._done - self._done_at_start
        is_slow = now - self._start_time >= SILENT_SECONDS
        return self._is_first and is_slow and done < START_SHARE * self._total

    def _warn_if_long(self, left: float | None, now: float) -> None:
        if self._console and left is not None and left >= LONG_SECONDS and not self._is_warned:
            self._is_warned = True
            self._console.print(
                f"this takes about {duration(left)} at {self._speed(now)}: Ctrl-C to stop",
                highlight=False,
                soft_wrap=True,
            )

    def _seconds_left(self, now: float) -> float | None:
        """The expected time, None where too little is done to expect anything."""
        done, seconds = self._done - self._done_at_start, now - self._start_time
        if done < START_SHARE * self._total and seconds < LINE_SECONDS:
            return None
        return seconds / max(done, 1) * max(self._total - self._done, 0)

    def _speed(self, now: float) -> str:
        seconds = max(now - self._start_time, 1e-9)
        if self._bytes:
            return _byte_speed(self._bytes / seconds)
        return f"{(self._done - self._done_at_start) / seconds:.1f} {self._unit}/s"


def tracked(items: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """The items, whose progress is shown on stderr; each is one unit."""
    with on_stderr(total, unit) as progress:
        for item in items:
            yield item
            progress.add(1)


def on_stderr(total: int, unit: str = BYTES) -> Progress:
    """A progress that is shown on stderr."""
    return Progress(stderr_console(), total, unit)


def stderr_console() -> Console:
    """The console of progress."""
    from rich.console import Console

    return Console(stderr=True)


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are two: `90 s`, `3 min`, `50 days`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def _byte_speed(speed: float) -> str:
    for size, unit in ((1e6, "MB/s"), (1e3, "kB/s")):
        if speed >= size:
            return f"{speed / size:.1f} {unit}"
    return f"{speed:.1f} B/s"


def _bar(console: Console) -> RichProgress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
