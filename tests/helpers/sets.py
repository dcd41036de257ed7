"""Random samples of each modality, and small shard sets of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import ShardWriter, write_set_manifest

SetMaker = Callable[..., ShardSet]


def text(data: bytes) -> Sample:
    """A text of these bytes."""
    return Sample("text", Header(), data)


def image(width: int, height: int, channels: int = 3, seed: int = 0) -> Sample:
    """An image of random pixels."""
    data = np.random.default_rng(seed).bytes(width * height * channels)
    return Sample("image", Header(width=width, height=height, channels=channels), data)


def audio(frames: int, channels: int = 1, rate: int = 16000, seed: int = 0) -> Sample:
    """A sound of random samples."""
    data = np.random.default_rng(seed).bytes(2 * frames * channels)
    return Sample("audio", Header(channels=channels, rate=rate), data)


def write_set(
    folder: Path,
    documents: Sequence[Sequence[Sample]],
    per_shard: int = 3,
    val: Sequence[Sequence[Sample]] = (),
) -> ShardSet:
    """Write a shard set to a new folder.

    Args:
        documents: samples of each document of train.
        per_shard: documents in a shard.
        val: samples of each document of val.
    """
    folder.mkdir()
    shards = []
    for split, split_documents in (("train", documents), ("val", val)):
        for number, first in enumerate(range(0, len(split_documents), per_shard)):
            writer = ShardWriter(folder, split, number)
            for i, samples in enumerate(split_documents[first : first + per_shard], first):
                writer.add(f"{split}-{i}", [f"{split}-{i}"] * len(samples), samples)
            shards.append(writer.close())
    write_set_manifest(folder, shards, {})
    return ShardSet(folder)
