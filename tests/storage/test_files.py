"""Durable writes: the old content or the new, and nothing left beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bytelm.pipelines.storage.files import rename_durably, replace_atomic, write_atomic


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"old", b"new"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half of the n")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_durable_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def recorded_rename(self: Path, target: Path) -> Path:
        calls.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    temporary = f"a.json.{os.getpid()}.tmp"
    write_atomic(tmp_path / "a.json", b"new")
    folder = tmp_path.name
    assert calls == [f"fsync {temporary}", f"rename {temporary} a.json", f"fsync {folder}"]
    calls.clear()
    rename_durably(tmp_path / "a.json", tmp_path / "b.json")
    assert calls == ["rename a.json b.json", f"fsync {folder}"]
