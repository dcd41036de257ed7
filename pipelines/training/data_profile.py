"""Facts about sets that decide a config: bytes of each modality and lengths of documents.

Indexes are read, no payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bytelm.modalities import MODALITIES, framing
from bytelm.pipelines.data.dataset_info import MAX_SHARDS
from bytelm.pipelines.shards.format import Index
from bytelm.pipelines.shards.reader import ShardSet, open_set

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SetProfile:
    """One set: its `train` split, and the size of its `val`."""

    path: str
    bytes: dict[str, int]
    """Stored bytes of each modality in `train`."""
    val_documents: int
    val_bytes: int
    lengths: Ints
    """[documents of the first shards] ids of each document, in patches of `patch` ids."""
    pictured: Ints
    """The same, of the documents that hold an image."""

    @classmethod
    def of(cls, shard_set: ShardSet, patch: int) -> SetProfile:
        """Profile a set for patches of `patch` ids.

        Raises:
            ValueError: if its `train` split has no documents.
        """
        train, val = shard_set.counts("train"), shard_set.counts("val")
        if not train.documents:
            raise ValueError(
                f"{shard_set.location} has no documents in split 'train': prepare it from more "
                "files, or leave it out"
            )
        measured = [
            _document_lengths(shard_set.index(shard), patch)
            for shard in shard_set.split("train")[:MAX_SHARDS]
        ]
        return cls(
            path=shard_set.location,
            bytes={name: train.bytes[name] for name in MODALITIES if train.bytes[name]},
            val_documents=val.documents,
            val_bytes=sum(val.bytes.values()),
            lengths=np.concatenate([lengths for lengths, _ in measured]),
            pictured=np.concatenate([lengths[has_image] for lengths, has_image in measured]),
        )

    @property
    def size(self) -> int:
        """Bytes of all modalities."""
        return sum(self.bytes.values())

    @property
    def main_modality(self) -> str:
        """The modality with the most bytes."""
        return max(self.bytes, key=lambda name: self.bytes[name])


@dataclass(frozen=True)
class DataProfile:
    """The sets of a run."""

    sets: Sequence[SetProfile]

    @classmethod
    def of(cls, paths: Sequence[str], patch: int) -> DataProfile:
        """Open and profile the sets at paths or URLs; raises ValueError and DamageError."""
        for path in paths:
            if any("\udc80" <= character <= "\udcff" for character in path):  # bytes that are none
                raise ValueError(f"{path!a} is no UTF-8, which a config needs: rename it")
        return cls([SetProfile.of(open_set(path), patch) for path in paths])

    @property
    def size(self) -> int:
        """Bytes of all sets."""
        return sum(one.size for one in self.sets)

    @cached_property
    def lengths(self) -> Ints:
        """Ids of documents of all sets."""
        return np.concatenate([one.lengths for one in self.sets])

    @cached_property
    def pictured(self) -> Ints:
        """Ids of documents that hold an image, of all sets."""
        return np.concatenate([one.pictured for one in self.sets])


def _document_lengths(index: Index, patch: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Ids of each document of a shard under the usual views, and whether it holds an image."""
    modality = index["modality"]
    ids = framing.preamble_lengths(modality, patch) + framing.body_length(
        index["size"].astype(np.int64), patch
    )
    _, document = np.unique(index["document"], return_inverse=True)
    lengths = np.bincount(document, weights=ids).astype(np.int64)
    images = modality == MODALITIES["image"].code
    return lengths, np.bincount(document, weights=images) > 0
