"""Progress of `prepare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bytelm.pipelines.runtime.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


class PrepareProgress(Progress):
    """Counts documents and decoded bytes, and shows documents, bytes per second and time left.

    The rows of tables are not known before they are read, so tables are counted by their bytes.
    """

    def __init__(self, console: Console | None, total: int, done: int):
        """
        Args:
            console: shows the progress; None shows nothing.
            total: documents of the set.
            done: those of them that an interrupted `prepare` has finished.
        """
        super().__init__(console, total, "documents", done)
        if console and done:
            console.print(f"resuming after {done} of {total} documents")

    def begin_tables(self, sizes: Sequence[int], done: int) -> None:
        """Count parts of tables from now on.

        Args:
            sizes: bytes of every part.
            done: parts that an interrupted `prepare` has finished.
        """
        self.begin(sum(sizes), "bytes of tables", sum(sizes[:done]))

    def advance(self, size: int) -> None:
        """Count one more document, of `size` decoded bytes."""
        self.add(1, size)

    def advance_tables(self, done: int, size: int) -> None:
        """Count `done` more bytes of tables, of which `size` decoded bytes came."""
        self.add(done, size)
