"""A tar writer for shards: the bytes of Python's tarfile (USTAR, no time, no owner), at disk speed.

Members are gathered to chunks. A thread writes and hashes a chunk while the next one is gathered,
since hashlib and the system calls release Python's global lock.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = tarfile.BLOCKSIZE
CHUNK_BYTES = 1 << 20
SYNC_BYTES = 1 << 25
"""Bytes between two syncs to the disk, which leave `close` little to wait for."""
MAX_PENDING = 64
"""Chunks that may wait for the disk while it syncs."""

_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_MODE_TO_GROUP, _TIME, _TYPE_TO_END = _HEADER[100:124], _HEADER[136:148], _HEADER[156:]
"""The constant fields of every header, between its name, size and checksum."""
_ZEROS = bytes(BLOCK_BYTES)
_CONSTANT_SUM = sum(_MODE_TO_GROUP) + sum(_TIME) + sum(_TYPE_TO_END) + 8 * ord(" ")


class TarWriter:
    """A tar file that grows member by member."""

    def __init__(self, path: Path):
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: deque[Future[None]] = deque()
        self._sha256 = hashlib.sha256()
        self._unsynced = 0
        self._chunk: list[bytes | memoryview] = []
        self._chunk_bytes = 0
        self.size = 0
        """Bytes so far, those that are not yet written included."""

    def add(self, name: str, data: bytes) -> int:
        """Append a member, and return the offset of its data."""
        header, padding = _header(name, len(data)), bytes(-len(data) % BLOCK_BYTES)
        offset = self.size + len(header)
        self._chunk += (header, data, padding)
        self._grow(len(header) + len(data) + len(padding))
        return offset

    def append(self, members: bytes | memoryview) -> None:
        """Append whole members with their headers and padding."""
        self._flush()
        for start in range(0, len(members), CHUNK_BYTES):
            part = members[start : start + CHUNK_BYTES]
            self._chunk.append(part)
            self._grow(len(part))

    def close(self) -> str:
        """Write the end mark, make the file durable, and return its SHA-256.

        Raises OSError where the disk did not take every byte.
        """
        end = self.size + 2 * tarfile.BLOCKSIZE
        zeros = 2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE
        self._chunk.append(bytes(zeros))
        self._grow(zeros)
        self._flush()
        self._thread.shutdown()
        for write in self._pending:
            write.result()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._sha256.hexdigest()

    def _grow(self, size: int) -> None:
        """Count bytes that were added to the chunk, and pass it on when it is large."""
        self._chunk_bytes += size
        self.size += size
        if self._chunk_bytes >= CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Hand the chunk to the thread. Raises what an earlier write has raised."""
        if len(self._pending) == MAX_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._write, self._chunk))
        self._chunk, self._chunk_bytes = [], 0

    def _write(self, chunk: list[bytes | memoryview]) -> None:
        """Hash and write a chunk; runs in the thread."""
        unwritten = memoryview(chunk[0] if len(chunk) == 1 else b"".join(chunk))
        self._sha256.update(unwritten)
        self._unsynced += len(unwritten)
        while unwritten:
            unwritten = unwritten[self._file.write(unwritten) :]
        if self._unsynced >= SYNC_BYTES:
            os.fdatasync(self._file.fileno())
            self._unsynced = 0


def fill_headers(
    headers: npt.NDArray[np.uint8], names: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int64]
) -> None:
    """Write the headers of many members, as `TarWriter.add` writes them.

    Args:
        headers: [members, BLOCK_BYTES] bytes that are overwritten.
        names: [members, characters] names in ASCII of at most 100 characters, with zeros behind the
            shorter ones.
        sizes: [members] bytes of their data.
    """
    length = names.shape[1]
    assert length <= 100, "a longer name needs a prefix"
    headers[:] = np.frombuffer(_HEADER, np.uint8)
    headers[:, :length] = names
    digits = _octal_digits(sizes, 11)
    headers[:, 124:135] = digits
    headers[:, 135] = 0
    sums = _CONSTANT_SUM + names.sum(1, np.int64) + digits.sum(1, np.int64)
    headers[:, 148:154] = _octal_digits(sums, 6)
    headers[:, 154:156] = np.frombuffer(b"\0 ", np.uint8)


def padding_parts(sizes: npt.NDArray[np.int64]) -> list[bytes]:
    """[members] zeros that fill up the last block of each, from the number that each needs."""
    return [_ZEROS[:size] for size in sizes.tolist()]


def _octal_digits(values: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.uint8]:
    """[values, count] octal digits in ASCII, with leading zeros."""
    shifts = 3 * np.arange(count - 1, -1, -1)
    return (ord("0") + (values[:, None] >> shifts & 7)).astype(np.uint8)


def _header(name: str, size: int) -> bytes:
    """The header of a regular member, as tarfile writes it."""
    encoded = name.encode("ascii")
    digits = b"%011o\0" % size
    assert len(encoded) <= 100, "a longer name needs a prefix"
    assert len(digits) == 12, "a larger size does not fit octal digits"
    checksum = b"%06o\0 " % (_CONSTANT_SUM + sum(encoded) + sum(digits))
    return b"".join(
        (encoded.ljust(100, b"\0"), _MODE_TO_GROUP, digits, _TIME, checksum, _TYPE_TO_END)
    )
