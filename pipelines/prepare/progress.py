"""Progress of `prepare`: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LINE_SECONDS = 10.0


class Meter:
    """Counts documents and decoded bytes, and shows documents, MB/s and the time left."""

    def __init__(self, console: Console | None, total: int, done: int):
        self._console = console
        self._total = total
        self._done = done
        self._first = done
        self._bytes = 0
        self._begun = self._said = time.monotonic()
        self._progress = _bar(console) if console and console.is_terminal else None

    def __enter__(self) -> Meter:
        if self._console and self._done:
            self._console.print(f"going on after {self._done} of {self._total} documents")
        if self._progress:
            self._progress.start()
            self._task = self._progress.add_task(
                "documents", total=self._total, completed=self._done, speed="0"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, size: int) -> None:
        """One document more, of `size` decoded bytes."""
        self._done += 1
        self._bytes += size
        if self._console is None:
            return
        now = time.monotonic()
        seconds = max(now - self._begun, 1e-9)
        speed = f"{self._bytes / 1e6 / seconds:.1f}"
        if self._progress:
            self._progress.update(self._task, completed=self._done, speed=speed)
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            left = seconds / (self._done - self._first) * (self._total - self._done)
            self._console.print(
                f"{self._done} of {self._total} documents, {speed} MB/s, {left:.0f} s left"
            )


def _bar(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]} MB/s"),
        TimeRemainingColumn(),
        console=console,
    )
