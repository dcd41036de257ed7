"""Noise in rows: what is replaced, and that a seed decides it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sets import image, text, write_set
from helpers.tiny_models import OPTIONS, tiny_model

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Bytes, Header
from bytelm.modalities.framing import Framed, Segment, Span
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.noise import add_noise
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.row_dataset import RowDataset
from bytelm.pipelines.shards.reader import ShardSet

VIEWS: Mapping[str, str] = vars(ViewsConfig())
NOISE = {"text": 0.0, "image": 0.4, "audio": 0.0}


@pytest.fixture
def images(tmp_path: Path) -> ShardSet:
    documents = [[text(b"a caption"), image(16, 12, seed=i)] for i in range(6)]
    return write_set(tmp_path / "images", documents)


def batch_of(
    shard_set: ShardSet, noise: Mapping[str, float] | None, row: int = 0, seed: int = 0
) -> Batch:
    plan = Plan([Source(shard_set)], PlanConfig(1024, 8, VIEWS, seed=seed))
    return RowDataset(plan, codec_patch=8, noise=noise).__getitems__([(0, row), None])


def framed(modality: str, view: str, payload: Bytes, header: Header) -> Framed:
    """A row of one segment and 80 ids of padding."""
    segment = Segment(MODALITIES[modality], header, view, payload.size)
    body = framing.body_length(payload.size, 8)
    one = framing.frame(
        [Span(0, 0, body)], [segment], lambda _, start, stop: payload[start:stop], 8
    )
    row = Framed.padding(len(one.ids) + 80, 8)
    row.ids[: len(one.ids)], row.role[: len(one.ids)] = one.ids, one.role
    return row


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_only_payload_bytes_are_replaced_about_as_many_as_were_asked_for(modality: str) -> None:
    view = VIEWS[modality]
    generator = np.random.default_rng(0)
    replaced = []
    for number in range(80):
        payload = generator.integers(0, 256, 3000).astype(np.uint8)
        row = framed(modality, view, payload, Header(width=50, height=20, channels=3))
        before = row.ids.copy()
        add_noise(row, {**NOISE, "image": 0.0, modality: 0.1}, (number,))
        changed = row.ids != before
        assert not changed[~row.payload].any()
        assert row.ids[row.payload].max() < 256
        replaced.append(changed[row.payload].mean())
    share_of_none = np.mean(np.array(replaced) == 0)
    assert 0.04 < np.mean(replaced) < 0.12
    assert 0.12 < share_of_none < 0.4
    assert max(replaced) < 0.35


def test_a_modality_without_a_share_has_no_noise() -> None:
    row = framed("audio", "s16be", np.zeros(900, np.uint8), Header(channels=1, rate=8_000))
    before = row.ids.copy()
    for number in range(20):
        add_noise(row, NOISE, (number,))
    assert np.array_equal(row.ids, before)


def test_runs_keep_the_place_of_bytes_of_samples() -> None:
    payload = (np.arange(8160) % 12).astype(np.uint8)
    row = framed("audio", "s16be", payload, Header(channels=1, rate=8_000))
    before = row.ids.copy()
    add_noise(row, {**NOISE, "audio": 0.1}, (1,))
    changed = np.flatnonzero(row.ids != before)
    # A copied run repeats what stood there; single bytes alone differ, here and there.
    assert len(changed) > 10
    assert (np.diff(changed) > 1).all()


@pytest.mark.parametrize("view", ["raster", "planar"])
def test_pixels_of_a_run_have_one_colour(view: str) -> None:
    """On black, copies change nothing, so that every run of changed bytes is a single byte or
    repeats the values of one pixel, of which a plane has one."""
    period = 3 if view == "raster" else 1
    row = framed("image", view, np.zeros(12_288, np.uint8), Header(64, 64, 3))
    add_noise(row, {**NOISE, "image": 0.1}, (2,))
    noise = row.ids[row.payload]
    edges = np.flatnonzero(np.diff(noise != 0, prepend=False, append=False)).reshape(-1, 2)
    long_runs = [noise[a:b] for a, b in edges.tolist() if b - a > 2 * period]
    same = [np.array_equal(run[period:], run[:-period]) for run in long_runs]
    assert len(same) > 5
    assert np.mean(same) > 0.8  # others are runs that meet


def test_the_seed_and_the_row_decide_the_noise(images: ShardSet) -> None:
    first = batch_of(images, NOISE)
    again = batch_of(images, NOISE)
    assert torch.equal(first.ids, again.ids)
    assert first.targets is not None
    assert not torch.equal(first.ids, first.targets)
    assert not torch.equal(first.ids, batch_of(images, NOISE, seed=1).ids)


def test_targets_and_everything_else_are_those_of_a_batch_without_noise(images: ShardSet) -> None:
    noisy, clean = batch_of(images, NOISE), batch_of(images, None)
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
