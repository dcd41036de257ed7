"""Noise in rows: what is replaced, and that a seed decides it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sets import image, text, write_set
from helpers.tiny_models import OPTIONS, tiny_model

from bytelm.modalities import framing
from bytelm.modalities.framing import Framed
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.noise import add_noise
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.row_dataset import RowDataset
from bytelm.pipelines.shards.reader import ShardSet

VIEWS: Mapping[str, str] = vars(ViewsConfig())


@pytest.fixture
def images(tmp_path: Path) -> ShardSet:
    documents = [[text(b"a caption"), image(16, 12, seed=i)] for i in range(6)]
    return write_set(tmp_path / "images", documents)


def batch_of(shard_set: ShardSet, noise: float, row: int = 0, seed: int = 0) -> Batch:
    plan = Plan([Source(shard_set)], PlanConfig(1024, 8, VIEWS, seed=seed))
    return RowDataset(plan, codec_patch=8, noise=noise).__getitems__([(0, row), None])


def test_only_payload_bytes_are_replaced_about_as_many_as_were_asked_for() -> None:
    generator = np.random.default_rng(0)
    replaced = []
    for number in range(60):
        row = Framed.padding(4096, 8)
        row.ids[100:3000] = generator.integers(0, 256, 2900)
        row.role[100:3000] = framing.PAYLOAD
        before = row.ids.copy()
        add_noise(row, 0.1, (number,))
        changed = row.ids != before
        assert not changed[:100].any()
        assert not changed[3000:].any()
        assert row.ids[100:3000].max() < 256
        replaced.append(changed[100:3000].mean())
    assert 0.04 < np.mean(replaced) < 0.12
    assert min(replaced) < 0.02
    assert max(replaced) < 0.25


def test_runs_keep_the_place_of_channels_and_of_bytes_of_samples() -> None:
    row = Framed.padding(8192, 8)
    row.ids[:] = np.arange(8192) % 12
    row.role[:] = framing.PAYLOAD
    before = row.ids.copy()
    add_noise(row, 0.2, (1,))
    changed = np.flatnonzero(row.ids != before)
    # A copied run repeats what stood there; single bytes alone differ, here and there.
    assert len(changed) > 10
    assert (np.diff(changed) > 1).all()


def test_the_seed_and_the_row_decide_the_noise(images: ShardSet) -> None:
    first = batch_of(images, 0.2)
    again = batch_of(images, 0.2)
    assert torch.equal(first.ids, again.ids)
    assert first.targets is not None
    assert not torch.equal(first.ids, first.targets)
    assert not torch.equal(first.ids, batch_of(images, 0.2, seed=1).ids)


def test_targets_and_everything_else_are_those_of_a_batch_without_noise(images: ShardSet) -> None:
    noisy, clean = batch_of(images, 0.2), batch_of(images, 0.0)
    assert clean.targets is None
    assert noisy.targets is not None
    assert torch.equal(noisy.targets, clean.ids)
    assert torch.equal(noisy.role, clean.role)
    assert torch.equal(noisy.document, clean.document)
    is_payload = noisy.payload
    assert torch.equal(noisy.ids[~is_payload], clean.ids[~is_payload])
    assert noisy.codec_features is not None
    assert clean.codec_features is not None
    assert not torch.equal(noisy.codec_features, clean.codec_features)


@pytest.mark.parametrize("chunk", [0, 3])
def test_the_model_predicts_the_true_bytes_behind_noise(chunk: int) -> None:
    """A byte's nats are those of the true byte by the logits behind the noise."""
    model = tiny_model("two", context=96, **OPTIONS["modern"], local_chunk=chunk).eval()
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randint(0, 256, (2, 96), generator=generator)
    targets = torch.randint(0, 256, (2, 96), generator=generator)
    document = torch.zeros(2, 1, dtype=torch.int32)
    modality = torch.zeros(2, 96, dtype=torch.uint8)
    with torch.no_grad():
        expected = -model.logits(noisy).log_softmax(-1).gather(2, targets[..., None])[..., 0]
        nats = model(noisy, document, modality, targets=targets)
        same = model(noisy, document, modality, targets=noisy)
        plain = model(noisy, document, modality)
    torch.testing.assert_close(nats, expected)
    assert torch.equal(same, plain)
