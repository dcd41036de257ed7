"""Progress of `prepare`: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LINE_SECONDS = 10.0


class PrepareProgress:
    """Counts documents and decoded bytes, and shows documents, MB/s and the time left."""

    def __init__(self, console: Console | None, total: int, done: int):
        """
        Args:
            console: shows the progress; None shows nothing.
            total: documents of the set.
            done: those of them that an interrupted `prepare` has finished.
        """
        self._console = console
        self._total = total
        self._done = self._done_at_start = done
        self._bytes = 0
        self._start_time = self._line_time = time.monotonic()
        self._bar = _bar(console) if console and console.is_terminal else None

    def __enter__(self) -> PrepareProgress:
        if self._console and self._done:
            self._console.print(f"resuming after {self._done} of {self._total} documents")
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(
                "documents", total=self._total, completed=self._done, speed="0"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, size: int) -> None:
        """Count one more document, of `size` decoded bytes."""
        self._done += 1
        self._bytes += size
        if self._console is None:
            return
        now = time.monotonic()
        seconds = max(now - self._start_time, 1e-9)
        speed = f"{self._bytes / 1e6 / seconds:.1f}"
        if self._bar:
            self._bar.update(self._task, completed=self._done, speed=speed)
        elif now - self._line_time >= LINE_SECONDS:
            self._line_time = now
            seconds_per_document = seconds / (self._done - self._done_at_start)
            seconds_left = seconds_per_document * (self._total - self._done)
            self._console.print(
                f"{self._done} of {self._total} documents, {speed} MB/s, {seconds_left:.0f} s left"
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
