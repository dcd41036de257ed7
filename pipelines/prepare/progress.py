"""Progress of `prepare`: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LINE_SECONDS = 10.0


class PrepareProgress:
    """Counts documents and decoded bytes, and shows documents, MB/s and the time left.

    The rows of tables are not known before they are read, so tables are counted by MB.
    """

    def __init__(self, console: Console | None, total: int, done: int):
        """
        Args:
            console: shows the progress; None shows nothing.
            total: documents of the set.
            done: those of them that an interrupted `prepare` has finished.
        """
        self._console = console
        self._total: float = total
        self._done: float = done
        self._done_at_start: float = done
        self._bytes = 0
        self._label = "documents"
        self._start_time = self._line_time = time.monotonic()
        self._bar = _bar(console) if console and console.is_terminal else None

    def __enter__(self) -> PrepareProgress:
        if self._console and self._done:
            self._console.print(f"resuming after {self._done} of {self._total} documents")
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(
                "documents", total=self._total, completed=int(self._done), speed="0"
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

    def begin_tables(self, sizes: Sequence[int], done: int) -> None:
        """Count parts of tables from now on.

        Args:
            sizes: bytes of every part.
            done: parts that an interrupted `prepare` has finished.
        """
        self._label = "MB of tables"
        self._total = _megabytes(sum(sizes))
        self._done = self._done_at_start = _megabytes(sum(sizes[:done]))
        self._bytes = 0
        self._start_time = time.monotonic()
        if self._bar:
            self._bar.update(self._task, description=self._label, total=self._total)

    def advance(self, size: int) -> None:
        """Count one more document, of `size` decoded bytes."""
        self._advance(1, size)

    def advance_tables(self, done: int, size: int) -> None:
        """Count `done` more bytes of tables, of which `size` decoded bytes came."""
        self._advance(_megabytes(done), size)

    def _advance(self, done: float, size: int) -> None:
        self._done += done
        self._bytes += size
        if self._console is None:
            return
        now = time.monotonic()
        seconds = max(now - self._start_time, 1e-9)
        speed = f"{self._bytes / 1e6 / seconds:.1f}"
        if self._bar:
            self._bar.update(self._task, completed=int(self._done), speed=speed)
        elif now - self._line_time >= LINE_SECONDS:
            self._line_time = now
            speed_of_work = max(self._done - self._done_at_start, 1e-9) / seconds
            seconds_left = (self._total - self._done) / speed_of_work
            self._console.print(
                f"{self._done:.0f} of {self._total:.0f} {self._label}, {speed} MB/s, "
                f"{seconds_left:.0f} s left"
            )


def _megabytes(size: int) -> float:
    """A size in millions of bytes."""
    return size / 1e6


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
