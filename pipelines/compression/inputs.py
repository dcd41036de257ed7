"""The files that a user names for compression."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

STANDARD = Path("-")
"""Standard input or standard output."""
STANDARD_NAME = "stdin"
"""Name under which standard input is restored."""


def find_inputs(paths: Sequence[Path]) -> tuple[list[tuple[str, Path]], list[Path]]:
    """List the files that some paths name, with the names under which they are restored.

    Args:
        paths: files; folders, whose files get names relative to them, in their order; `-`.
    Returns:
        (name, path) of each file, and the pipes, devices and linked folders that are left out.
    Raises:
        ValueError: for a folder that holds no file or cannot be listed.
    """
    inputs: list[tuple[str, Path]] = []
    left_out: list[Path] = []
    for path in paths:
        if path == STANDARD:
            inputs.append((STANDARD_NAME, path))
        elif path.is_dir():
            inputs += _files_below(path, left_out)
        else:
            inputs.append((path.name, path))
    return inputs, left_out


def read_input(path: Path) -> bytes:
    """Read a file or standard input. Raises ValueError for a file that cannot be read."""
    try:
        return sys.stdin.buffer.read() if path == STANDARD else path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _files_below(folder: Path, left_out: list[Path]) -> list[tuple[str, Path]]:
    """(name, path) of each file below a folder; appends to `left_out` what is none."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from error

    files: list[tuple[str, Path]] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        left_out += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
        for path in (Path(parent, name) for name in sorted(names)):
            if path.is_file():
                files.append((path.relative_to(folder).as_posix(), path))
            else:
                left_out.append(path)
    if not files:
        raise ValueError(f"{folder} holds no file to compress")
    return files
