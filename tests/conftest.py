"""Small shard sets and models that the tests share, made anew in a temporary folder.

Tests are of the processor, where results are the same to the last bit and one machine holds several
ranks; CUDA_VISIBLE_DEVICES=0 lets them see a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.shards import ShardSet
from bytelm.pipelines.shardwriter import ShardWriter, write_manifest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

SetMaker = Callable[..., ShardSet]


def text(data: bytes) -> Sample:
    """A text of given bytes."""
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
    """A shard set of documents, each a list of samples, so many to a shard, in a new folder."""
    folder.mkdir()
    shards = []
    for split, chosen in (("train", documents), ("val", val)):
        for number, first in enumerate(range(0, len(chosen), per_shard)):
            writer = ShardWriter(folder, split, number)
            for i, samples in enumerate(chosen[first : first + per_shard], first):
                writer.add(f"{split}-{i}", [f"{split}-{i}"] * len(samples), samples)
            shards.append(writer.close())
    write_manifest(folder, shards, {})
    return ShardSet(folder)


@pytest.fixture
def make_set(tmp_path: Path) -> SetMaker:
    """Makes a shard set as `write_set` does, by its name."""

    def make(
        documents: Sequence[Sequence[Sample]],
        name: str = "set",
        per_shard: int = 3,
        val: Sequence[Sequence[Sample]] = (),
    ) -> ShardSet:
        return write_set(tmp_path / name, documents, per_shard, val)

    return make


@pytest.fixture
def mixed_set(make_set: SetMaker) -> ShardSet:
    """Texts, images, sounds and a pair, of sizes from 1 to 3,000 bytes; three documents in val."""
    rng = np.random.default_rng(7)
    words = [b"whale ", b"sea ", b"ship ", b"white "]
    texts = [[text(b"".join(rng.choice(words, n)))] for n in (1, 5, 40, 90, 200, 500)]
    images = [[image(w, h, c, seed=w)] for w, h, c in ((1, 1, 1), (8, 8, 3), (20, 15, 3))]
    sounds = [[audio(n, c, seed=n)] for n, c in ((3, 1), (100, 2), (700, 1))]
    pair = [[text(b"a caption"), image(6, 5, seed=3)]]
    return make_set(
        texts + images + sounds + pair,
        val=[[text(b"call me " * 20)], [image(9, 7, seed=5)], [audio(150, seed=6)]],
    )
