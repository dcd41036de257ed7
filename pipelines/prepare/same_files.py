"""Files that the sources reach twice: by hard and symbolic links, and by sources that overlap."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from bytelm.pipelines.prepare.documents import SAME_FILE, SkippedFile
from bytelm.pipelines.prepare.scan import SourceFile


def drop_same_files(
    files_by_source: Sequence[list[SourceFile]], inodes: array[int], blob_folders: set[str]
) -> tuple[list[list[SourceFile]], list[SkippedFile]]:
    """Keep one name of each file.

    A name with a suffix is kept before one without, a file before a link to it, the longest path
    below its source before others, and nothing in `blob_folders` before anything else. Two files of
    equal content are two files.

    Args:
        files_by_source: the files of each source.
        inodes: of all files, in their order.
        blob_folders: paths of folders whose names mean nothing.
    Returns:
        the files of each source that are kept, and an entry for each other one.
    """
    first = [0, *accumulate(len(files) for files in files_by_source)]
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for position in _repeated(inodes):
        source = bisect_right(first, position) - 1
        number = position - first[source]
        identity = _identity(files_by_source[source][number].path)
        if identity:
            groups.setdefault(identity, []).append((source, number))
    dropped: list[set[int]] = [set() for _ in files_by_source]
    skipped: list[SkippedFile] = []
    for group in groups.values():
        ranked = sorted((_rank(files_by_source[s][n], blob_folders), s, n) for s, n in group)
        kept = files_by_source[ranked[0][1]][ranked[0][2]]
        for _, source, number in ranked[1:]:
            name = files_by_source[source][number].name
            dropped[source].add(number)
            skipped.append(SkippedFile(name, SAME_FILE, f"the same file as {kept.name}"))
    kept_files = [
        [file for i, file in enumerate(files) if i not in numbers] if numbers else files
        for files, numbers in zip(files_by_source, dropped, strict=True)
    ]
    return kept_files, skipped


def _repeated(inodes: array[int]) -> Iterable[int]:
    """Positions of the inodes that occur more than once."""
    numbers = np.frombuffer(inodes, np.uint64) if inodes else np.zeros(0, np.uint64)
    order = np.argsort(numbers, kind="stable")
    is_equal = numbers[order][1:] == numbers[order][:-1]
    is_repeated = np.zeros(len(numbers), bool)
    is_repeated[:-1] |= is_equal
    is_repeated[1:] |= is_equal
    return np.sort(order[is_repeated]).tolist()


def _identity(path: str) -> tuple[int, ...] | None:
    """Facts that only one file has. Size and time guard against file systems that give one inode to
    several files."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _rank(file: SourceFile, blob_folders: set[str]) -> tuple[bool, bool, bool, int, str]:
    """Sorts the names of one file, the best one first."""
    return (
        os.path.dirname(file.path) in blob_folders,
        file.stem == file.name,
        os.path.islink(file.path),
        -file.name.count("/"),
        file.name,
    )
