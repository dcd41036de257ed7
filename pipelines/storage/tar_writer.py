"""Writing a tar: the bytes of Python's tarfile (USTAR, no time and no owner), at disk speed.

What is added is gathered to chunks, which a thread writes and hashes while the next one is
gathered; hashlib and the system calls run beside Python.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

TAR_BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 1 << 20
SYNC_BYTES = 1 << 25
"""So much is made durable at once, so that little is left to wait for at the end."""
MAX_PENDING = 64
"""Chunks that may wait for the disk while it syncs."""

_EMPTY = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_TO_SIZE, _TO_CHECKSUM, _TO_END = _EMPTY[100:124], _EMPTY[136:148], _EMPTY[156:]
"""What every header has between its name, size and checksum."""
_SUM = sum(_TO_SIZE) + sum(_TO_CHECKSUM) + sum(_TO_END) + 8 * ord(" ")


def tar_header(name: str, size: int) -> bytes:
    """The header of a regular member, as tarfile writes it."""
    encoded = name.encode("ascii")
    digits = b"%011o\0" % size
    assert len(encoded) <= 100, "a longer name needs a prefix"
    assert len(digits) == 12, "a size that octal digits cannot say"
    checksum = b"%06o\0 " % (_SUM + sum(encoded) + sum(digits))
    return b"".join((encoded.ljust(100, b"\0"), _TO_SIZE, digits, _TO_CHECKSUM, checksum, _TO_END))


class TarWriter:
    """A tar file that grows member by member."""

    def __init__(self, path: Path):
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: deque[Future[None]] = deque()
        self._sha256 = hashlib.sha256()
        self._unsynced = 0
        self._chunk: list[bytes] = []
        self._chunk_bytes = 0
        self.size = 0
        """Bytes so far."""

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns where its data begin."""
        offset = self.size + TAR_BLOCK
        padding = -len(data) % TAR_BLOCK
        self._chunk += (tar_header(name, len(data)), data, bytes(padding))
        self._grow(TAR_BLOCK + len(data) + padding)
        return offset

    def _grow(self, size: int) -> None:
        """So many bytes were added to the chunk."""
        self._chunk_bytes += size
        self.size += size
        if self._chunk_bytes >= CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        if len(self._pending) == MAX_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._write, self._chunk))
        self._chunk, self._chunk_bytes = [], 0

    def _write(self, chunk: list[bytes]) -> None:
        joined = memoryview(b"".join(chunk))
        self._sha256.update(joined)
        self._unsynced += len(joined)
        while joined:
            joined = joined[self._file.write(joined) :]
        if self._unsynced >= SYNC_BYTES:
            os.fdatasync(self._file.fileno())
            self._unsynced = 0

    def close(self) -> str:
        """Write the end mark and make all durable; returns the SHA-256. OSError where the disk
        did not take it."""
        end = self.size + 2 * TAR_BLOCK
        zeros = 2 * TAR_BLOCK + -end % tarfile.RECORDSIZE
        self._chunk.append(bytes(zeros))
        self._grow(zeros)
        self._flush()
        self._thread.shutdown()
        for written in self._pending:
            written.result()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._sha256.hexdigest()
