"""A sample of the documents of some sets, the same on every rank and machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bytelm.pipelines.shards.format import Index, Shard
from bytelm.pipelines.shards.reader import ShardSet

Ints = npt.NDArray[np.int64]
_MIX = np.uint64(0x9E3779B97F4A7C15)


class ChosenDocuments(ShardSet):
    """Some documents of a set: its indexes without the rows of all others."""

    def __init__(self, whole: ShardSet, documents: dict[str, Ints]):
        """
        Args:
            documents: numbers of the chosen documents of each shard that has any, by its name.
        """
        self.__dict__.update(whole.__getstate__())
        self.shards = [
            replace(shard, documents=len(documents[shard.name]))
            for shard in whole.shards
            if shard.name in documents
        ]
        self._documents = documents
        self._chosen: dict[str, Index] = {}
        self._start()

    def index(self, shard: Shard) -> Index:
        """[segments] the rows of the shard's index that belong to chosen documents."""
        if shard.name not in self._chosen:
            index = super().index(shard)
            is_chosen = np.isin(index["document"], self._documents[shard.name])
            self._chosen[shard.name] = index[is_chosen]
        return self._chosen[shard.name]


def document_count(sets: Sequence[ShardSet], split: str) -> int:
    """Documents that some sets have in a split."""
    return sum(shard_set.counts(split).documents for shard_set in sets)


def choose_documents(sets: Sequence[ShardSet], split: str, limit: int) -> list[ShardSet]:
    """Choose `limit` documents of a split, as evenly from each set as the sets allow.

    Documents come in the order of a hash of their content, so that they are a fair sample of their
    set, and the same ones wherever the set lies, however it is cut into shards. A set of whose
    documents none is chosen is left out; one that has none stays, and its reader refuses it.
    """
    orders = [_documents_by_hash(shard_set, split) for shard_set in sets]
    chosen: list[ShardSet] = []
    counts = _even_shares([len(numbers) for _, numbers in orders], limit)
    for shard_set, (shards, numbers), count in zip(sets, orders, counts, strict=True):
        names = [shard.name for shard in shard_set.split(split)]
        documents = {
            names[shard]: np.sort(numbers[:count][shards[:count] == shard])
            for shard in np.unique(shards[:count])
        }
        if documents:
            chosen.append(ChosenDocuments(shard_set, documents))
        elif not len(numbers):
            chosen.append(shard_set)
    return chosen


def _even_shares(sizes: Sequence[int], limit: int) -> list[int]:
    """How many to take of each of some sets, so that they differ only where a set has no more."""
    shares = [0] * len(sizes)
    left = min(limit, sum(sizes))
    while left:
        open_sets = [n for n, size in enumerate(sizes) if shares[n] < size]
        each = max(1, left // len(open_sets))
        for number in open_sets:
            taken = min(each, sizes[number] - shares[number], left)
            shares[number] += taken
            left -= taken
    return shares


def _documents_by_hash(shard_set: ShardSet, split: str) -> tuple[Ints, Ints]:
    """[documents] shard in the split and number in the shard, ordered by the documents' hashes."""
    shards, numbers, hashes = [], [], []
    for number, shard in enumerate(shard_set.split(split)):
        documents, values = _document_hashes(shard_set, shard)
        shards.append(np.full(len(documents), number))
        numbers.append(documents)
        hashes.append(values)
    order = np.argsort(np.concatenate([np.empty(0, np.uint64), *hashes]), kind="stable")
    none = np.empty(0, np.int64)
    return np.concatenate([none, *shards])[order], np.concatenate([none, *numbers])[order]


def _document_hashes(shard_set: ShardSet, shard: Shard) -> tuple[Ints, npt.NDArray[np.uint64]]:
    """Number and hash of each document of a shard, from sizes and first checksums of its members:
    nothing but the index is read."""
    index, checksums = shard_set.index(shard), shard_set.checksums(shard)
    if not len(index):
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    padded = np.append(checksums, np.uint32(0)).astype(np.uint64)
    has_bytes = index["size"] > 0
    crc = padded[np.where(has_bytes, index["first_crc"], len(checksums))]
    document = index["document"].astype(np.int64)
    first = np.flatnonzero(np.diff(document, prepend=-1))
    ordinal = np.arange(len(index)) - np.repeat(first, np.diff([*first, len(index)]))
    with np.errstate(over="ignore"):  # splitmix64's finalizer; products wrap
        x = (crc << np.uint64(32)) ^ index["size"].astype(np.uint64)
        x = x + (ordinal.astype(np.uint64) + np.uint64(1)) * _MIX
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return document[first], np.bitwise_xor.reduceat(x ^ (x >> np.uint64(31)), first)
