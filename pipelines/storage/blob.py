"""Blobs: the objects that a store delivers, addressed by name and verified by content.

A shard set has two for each shard: the tar and the index.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """An object's name and content.

    Raises ValueError where the name is no plain file name, the hash is no SHA-256 in hex, or the
    size is negative.
    """

    name: str
    size: int
    """Size in bytes."""
    sha256: str

    def __post_init__(self) -> None:
        check_name(self.name)
        if not is_sha256(self.sha256) or self.size < 0:
            raise ValueError(f"{self.name}: no size and SHA-256: {self.size}, {self.sha256!r}")


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is a plain file name, which stays in its folder anywhere."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a shard: letters, digits, '.', '_' and '-' only")


def is_sha256(text: str) -> bool:
    """Whether a text is a SHA-256 in lower-case hex."""
    return _SHA256.fullmatch(text) is not None
