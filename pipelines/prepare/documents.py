"""Documents before they are decoded, what is skipped on the way, and the rules for keys and splits.

There is an object or two for each of millions of files, so these are tuples.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

KEY_MAX = 90
KEY_HASH = 8
"""Hexadecimal digits of the hash in a key that was changed."""

CAPTION_ALONE = "caption without a file"
METADATA = "metadata"
BOOKKEEPING = "bookkeeping"
SAME_FILE = "the same file as another"
EXCLUDED = "excluded"
HARMLESS_REASONS = (CAPTION_ALONE, METADATA, BOOKKEEPING, SAME_FILE, EXCLUDED)
"""Reasons that do not make a file count as bad."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


class DocumentPart(NamedTuple):
    """A future segment: a file, or the caption of one."""

    modality: str | None
    """None where the file's first bytes are yet to tell."""
    name: str
    """The file's name relative to its source. A caption has the name of the file it describes."""
    path: str | None
    """None for a caption."""
    size: int
    """Bytes of the file or the caption."""
    caption: str = ""
    offset: int | None = None
    """Position of a member's first byte in the tar at `path`; None for a whole file."""


class SourceDocument(NamedTuple):
    """A document whose files are yet to be decoded."""

    key: str
    split: str
    parts: tuple[DocumentPart, ...]


@dataclass(frozen=True, order=True)
class SkippedFile:
    """A file that did not become part of a document. The field names stand in manifests."""

    name: str
    """The file's name, relative to its source."""
    reason: str
    """Short name by which skipped files are counted."""
    detail: str
    size: int = 0
    """Bytes that are lost with it."""
    count: int = 1
    """Files, members or rows that the entry stands for."""


def count_reasons(skipped: Sequence[SkippedFile]) -> dict[str, int]:
    """How often each reason occurs, in the order of their names."""
    counts: Counter[str] = Counter()
    for entry in skipped:
        counts[entry.reason] += entry.count
    return dict(sorted(counts.items()))


def make_key(stem: str) -> str:
    """The key of a document from its path without suffix, relative to its source.

    A stem that is no safe name, or is too long, gets a part of its SHA-256 appended.
    """
    safe = _UNSAFE.sub("_", stem)
    if safe == stem and len(safe) <= KEY_MAX:
        return safe
    digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:KEY_HASH]
    return f"{safe[: KEY_MAX - KEY_HASH - 1]}-{digest}"


def split_of(digest: bytes, shares: tuple[float, float, float]) -> str:
    """The split of a document by the SHA-256 of its key; `shares` are of train, val and test."""
    position = hash_position(digest)
    if position < shares[0]:
        return "train"
    return "val" if position < shares[0] + shares[1] else "test"


def hash_position(digest: bytes) -> float:
    """Where a hash lies among all, from 0 to 1."""
    return int.from_bytes(digest[-8:]) / 2**64
