"""The tar writer writes the bytes of Python's own."""

from __future__ import annotations

import errno
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from bytelm.pipelines.storage import tar_writer
from bytelm.pipelines.storage.tar_writer import TarWriter


@pytest.mark.parametrize("sizes", [[], [0], [1, 511, 512, 513, 7000], [3 << 20, 10, 2 << 20] * 5])
def test_the_bytes_are_those_of_tarfile(tmp_path: Path, sizes: list[int]) -> None:
    expected = io.BytesIO()
    writer = TarWriter(tmp_path / "a.tar")
    members = []
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, size in enumerate(sizes):
            data = bytes([i % 256]) * size
            info = tarfile.TarInfo(f"{'k' * (i * 7 % 90)}{i}.txt")
            info.size = size
            tar.addfile(info, io.BytesIO(data))
            members.append((writer.add(info.name, data), data))
    digest = writer.close()
    written = (tmp_path / "a.tar").read_bytes()
    assert written == expected.getvalue()
    assert writer.size == len(written)
    assert digest == hashlib.sha256(written).hexdigest()
    assert all(written[offset : offset + len(data)] == data for offset, data in members)


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tar_writer.os, "fdatasync", full)
    monkeypatch.setattr(tar_writer, "SYNC_BYTES", 1)
    writer = TarWriter(tmp_path / "a.tar")
    writer.add("a.txt", bytes(100))
    with pytest.raises(OSError, match="No space left"):
        writer.close()
