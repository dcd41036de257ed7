"""Unique keys for documents whose names, without a suffix, are alike."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from bytelm.pipelines.prepare.documents import make_key


class KeyCandidate(NamedTuple):
    """Parts that the key of a document can be made of."""

    name: str
    """Name of the document's main file, relative to its source."""
    place: tuple[str, ...]
    """Names of the folders that hold the source's files, the outermost first."""
    offset: int | None
    """Position in its tar."""
    source: int
    """Number of the source."""


def unique_keys(candidates: Sequence[KeyCandidate], taken: set[str]) -> list[str]:
    """Keys for documents whose stems are alike, in their order.

    All documents that share a key get the next longer one together: the name with its suffix, then
    as many folders of the source before it as are needed, and at last a hash. So the keys do not
    depend on the order of the documents.

    Args:
        candidates: the documents that share their keys with another.
        taken: keys of all other documents; the new ones are added.
    """
    keys = [""] * len(candidates)
    pending = list(range(len(candidates)))
    folders = 0
    while pending:
        tried = [_key(candidates[i], folders) for i in pending]
        count = Counter(tried)
        unique = {key for key, n in count.items() if n == 1 and key not in taken}
        for i, key in zip(pending, tried, strict=True):
            keys[i] = key
        pending = [i for i, key in zip(pending, tried, strict=True) if key not in unique]
        taken |= unique
        folders += 1
    return keys


def _key(candidate: KeyCandidate, folders: int) -> str:
    """The key with so many folders of the source before the name; with a hash where the source has
    no more of them."""
    name, place = candidate.name, candidate.place
    if folders <= len(place):
        return make_key("/".join((*place[len(place) - folders :], name)))
    identity = f"{name}\0{candidate.offset}\0{candidate.source}\0{folders}"
    return make_key(f"{name}#{hashlib.sha256(os.fsencode(identity)).hexdigest()}")
