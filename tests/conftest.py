"""Small shard sets and models that the tests share, made anew in a temporary folder.

Tests are of the processor, where results are the same to the last bit and one machine holds several
ranks; CUDA_VISIBLE_DEVICES=0 lets them see a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.sets import SetMaker, audio, image, text, write_set

from bytelm.modalities.base import Sample
from bytelm.pipelines.shards.reader import ShardSet

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


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
