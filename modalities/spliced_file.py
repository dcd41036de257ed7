"""A file made of byte ranges of another file and of bytes in memory."""

from __future__ import annotations

import bisect
import io
import itertools
import os
from collections.abc import Sequence
from typing import BinaryIO, cast


class SplicedFile(io.RawIOBase):
    """Pieces of a file, read as one: `bytes` as they are, a `range` as those bytes of the file.

    Decoders read a container through it whose header is wrong or whose parts are not adjacent.
    """

    def __init__(self, file: BinaryIO, pieces: Sequence[bytes | range]):
        super().__init__()
        self._file = file
        self._pieces = pieces
        self._starts = list(itertools.accumulate((len(p) for p in pieces), initial=0))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}
        self._position = max(0, base[whence] + offset)
        return self._position

    # The check ignores the override: RawIOBase takes any buffer, for which Python 3.11 has no type
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and self._position < self._starts[-1]:
            index = bisect.bisect_right(self._starts, self._position) - 1
            piece, inside = self._pieces[index], self._position - self._starts[index]
            count = min(len(view) - filled, len(piece) - inside)
            if isinstance(piece, bytes):
                view[filled : filled + count] = piece[inside : inside + count]
            else:
                self._file.seek(piece.start + inside)
                data = self._file.read(count)
                view[filled : filled + len(data)] = data
                count = len(data)
            if not count:
                break
            filled += count
            self._position += count
        return filled


def spliced(file: BinaryIO, pieces: Sequence[bytes | range]) -> BinaryIO:
    """A SplicedFile, typed as the binary file that it is."""
    return cast(BinaryIO, SplicedFile(file, pieces))
