"""Windows that overlap: every id counts once, with the past that its way promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import TINY_MODEL, bytelm
from helpers.sets import SetMaker, audio, image, text
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header
from bytelm.modalities.framing import Segment
from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.evaluation.windows import (
    BOTH,
    PLAIN,
    SLIDING,
    STRIDED,
    WAYS,
    scored_documents,
    windows,
)

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
LENGTH, PATCH = 128, 8


def document(sizes: list[int]) -> tuple[list[Segment], list[np.ndarray]]:
    """A text, and an image after it where there are two sizes."""
    rng = np.random.default_rng(sum(sizes))
    kinds = [("text", Header(), "utf8"), ("image", Header(1, 1, 1), "raster")]
    segments = [
        Segment(MODALITIES[name], header, view, size)
        for (name, header, view), size in zip(kinds, sizes, strict=False)
    ]
    return segments, [rng.integers(0, 256, size, np.uint8) for size in sizes]


@settings(deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=2), st.sampled_from(WAYS))
def test_every_scored_id_counts_once_and_is_the_documents_own(sizes: list[int], way: str) -> None:
    segments, payloads = document(sizes)
    whole = framing.frame(
        [framing.Span(i, 0, framing.body_length(s.size, PATCH)) for i, s in enumerate(segments)],
        segments,
        lambda i, a, b: payloads[i][a:b],
        PATCH,
    )
    counted = np.zeros(len(whole.ids), np.int64)
    for window in windows(segments, payloads, LENGTH, PATCH, way):
        assert len(window.at) <= LENGTH
        assert len(window.at) % PATCH == 0
        mine = window.at >= 0
        assert np.array_equal(window.framed.ids[mine], whole.ids[window.at[mine]])
        counted[window.at[mine]] += 1
    assert (counted[whole.scored] == 1).all()


@pytest.mark.parametrize("way", WAYS)
def test_ids_have_the_past_that_the_way_promises(way: str) -> None:
    """Of a text of many windows, behind its first window: how much of the row stands before an id,
    and at which place of its patch it is."""
    segments, payloads = document([3000])
    opening = framing.preamble_length(MODALITIES["text"], PATCH)
    room = LENGTH - opening
    before, in_patch = [], []
    for window in windows(segments, payloads, LENGTH, PATCH, way):
        for index in np.flatnonzero(window.at >= opening + room + PATCH):
            before.append(index - opening)
            in_patch.append(index % PATCH)
    half_window = LENGTH // 2 - opening
    assert (min(before) >= half_window - PATCH) == (way in (SLIDING, BOTH))
    assert (max(in_patch) < PATCH // 2) == (way in (STRIDED, BOTH))


@pytest.mark.parametrize("way", [SLIDING, STRIDED, BOTH])
def test_nats_are_those_of_each_window_alone(way: str, make_set: SetMaker) -> None:
    """Rows that hold several windows against the uncached logits of one window at a time."""
    torch.manual_seed(3)
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.3})
    model = Megabyte(config).eval()
    documents = [[text(b"call me " * 90)], [text(b"a caption"), image(14, 9, seed=1)]]
    shard_set = make_set([*documents, [audio(300, seed=2)], [text(b"x")]])
    plan = Plan([Source(shard_set)], PlanConfig(256, PATCH, VIEWS))

    @torch.no_grad()
    def nats(batch: Batch) -> torch.Tensor:
        return model(batch.ids.long(), batch.document, batch.modality)

    found = list(scored_documents(plan, nats, 2, way))
    assert len(found) == 4
    for shard in shard_set.split("train"):
        index = shard_set.index(shard)
        for number in np.unique(index["document"]):
            rows = index[index["document"] == number]
            segments = [plan.segment(row) for row in rows]
            payloads = [
                s.modality.to_view(shard_set.sample(shard, row), s.view, PATCH)
                for s, row in zip(segments, rows, strict=True)
            ]
            own = found.pop(0)
            assert np.isfinite(own.nats[own.framed.scored]).all()
            for window in windows(segments, payloads, 256, PATCH, way):
                ids = torch.from_numpy(window.framed.ids).long()
                with torch.no_grad():
                    logits = model.logits(ids[None])[0].double()
                alone = -logits.log_softmax(1)[torch.arange(len(ids)), ids].numpy()
                mine = window.at >= 0
                assert own.nats[window.at[mine]] == pytest.approx(alone[mine], abs=1e-4)


def test_the_command_and_what_the_ways_gain(make_set: SetMaker, tmp_path: Path) -> None:
    """Documents that fit a row have nothing to slide over; others count the same bytes."""
    torch.manual_seed(1)
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.3})
    folder = tmp_path / "model"
    save_pretrained(Megabyte(config), config, folder, {"views": VIEWS})
    short = make_set([[text(b"sea")]], val=[[text(b"whale " * 20)], [image(8, 8, seed=1)]])
    plain, _ = evaluate(folder, [short.location], "val", 1, "fp32", PLAIN)
    sliding, _ = evaluate(folder, [short.location], "val", 3, "fp32", SLIDING)
    for name, figures in plain.items():
        assert sliding[name] == pytest.approx(figures, rel=1e-6)
    long = make_set([[text(b"sea")]], "long", val=[[text(b"whale " * 200)], [audio(900, seed=1)]])
    sizes = set()
    for way in WAYS:
        shown = bytelm(
            "evaluate", folder, "--data", long.location, "--scoring", way, "--json"
        ).stdout
        model = json.loads(shown)["model"]
        sizes.add(tuple(model[name]["payload_bytes"] for name in ("text", "audio", "total")))
    assert sizes == {(1200, 1800, 3000)}


def test_a_patch_of_one_id_has_no_half(make_set: SetMaker, tmp_path: Path) -> None:
    stage = StageConfig(width=16, layers=1, heads=2)
    config = ModelConfig(stages=(stage,), patch_sizes=(), context=256)
    save_pretrained(Megabyte(config), config, tmp_path / "flat", {"views": VIEWS})
    shard_set = make_set([[text(b"sea")]], val=[[text(b"whale")]])
    arguments = (tmp_path / "flat", "--data", shard_set.location, "--scoring", "strided")
    assert "this model has none" in bytelm("evaluate", *arguments, status=2).stderr
