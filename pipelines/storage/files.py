"""Durable writes: after a crash a path holds its old content or its new, never a part of it.

Everything in this repository that must survive a crash is written here: indexes and manifests of
shard sets, the state of `prepare`, exported models, a run's pointers and configs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content. See `replace_atomic`."""
    replace_atomic(path, lambda temporary: temporary.write_bytes(data))


def replace_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file by one that `write` makes at a temporary path in the same folder.

    The temporary file is fsynced and renamed. Its name contains the process's id, so processes that
    write one path at once do not mix their bytes; it is removed when `write` fails.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _fsync(temporary)
        rename_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename_durably(source: Path, target: Path) -> None:
    """Rename a file or folder, whose content is durable already, within its parent folder."""
    source.rename(target)
    fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
