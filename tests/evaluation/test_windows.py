"""Windows that overlap: every id counts once, with the past that its scoring promises."""

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
from bytelm.pipelines.evaluation import BOTH, PLAIN, SCORINGS, SLIDING, STRIDED
from bytelm.pipelines.evaluation.documents import documents_by_shard
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.evaluation.windows import Document, score_documents, windows

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
LENGTH, PATCH = 128, 8


def document(sizes: list[int]) -> Document:
    """A text, and an image after it where there are two sizes."""
    rng = np.random.default_rng(sum(sizes))
    kinds = [("text", Header(), "utf8"), ("image", Header(1, 1, 1), "raster")]
    segments = [
        Segment(MODALITIES[name], header, view, size)
        for (name, header, view), size in zip(kinds, sizes, strict=False)
    ]
    return Document(segments, [rng.integers(0, 256, size, np.uint8) for size in sizes])


@settings(deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=2), st.sampled_from(SCORINGS))
def test_every_scored_id_counts_once_and_is_the_documents_own(
    sizes: list[int], scoring: str
) -> None:
    scored = document(sizes)
    spans = [
        framing.Span(i, 0, framing.body_length(segment.size, PATCH))
        for i, segment in enumerate(scored.segments)
    ]
    framed = scored.frame(spans, PATCH)
    times_counted = np.zeros(len(framed.ids), np.int64)
    for window in windows(scored, LENGTH, PATCH, scoring):
        assert len(window.positions) <= LENGTH
        assert len(window.positions) % PATCH == 0
        counts = window.positions >= 0
        assert np.array_equal(window.framed.ids[counts], framed.ids[window.positions[counts]])
        times_counted[window.positions[counts]] += 1
    assert (times_counted[framed.scored] == 1).all()


@pytest.mark.parametrize("scoring", SCORINGS)
def test_ids_have_the_past_that_the_scoring_promises(scoring: str) -> None:
    """A text of many windows, behind its first window: the ids of a row that precede an id, and
    the position of that id in its patch."""
    opening = framing.preamble_length(MODALITIES["text"], PATCH)
    room = LENGTH - opening
    preceding, in_patch = [], []
    for window in windows(document([3000]), LENGTH, PATCH, scoring):
        for index in np.flatnonzero(window.positions >= opening + room + PATCH):
            preceding.append(index - opening)
            in_patch.append(index % PATCH)
    half_window = LENGTH // 2 - opening
    assert (min(preceding) >= half_window - PATCH) == (scoring in (SLIDING, BOTH))
    assert (max(in_patch) < PATCH // 2) == (scoring in (STRIDED, BOTH))


@pytest.mark.parametrize("scoring", [SLIDING, STRIDED, BOTH])
def test_nats_are_those_of_each_window_alone(scoring: str, make_set: SetMaker) -> None:
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

    stored = [document for shard in documents_by_shard(plan) for document in shard]
    loaded = [document.load(PATCH) for document in stored]
    results = score_documents(loaded, nats, plan.config, 2, scoring)
    assert len(results) == 4
    for shard in shard_set.split("train"):
        index = shard_set.index(shard)
        for number in np.unique(index["document"]):
            rows = index[index["document"] == number]
            segments = [plan.segment(row) for row in rows]
            payloads = [
                s.modality.to_view(shard_set.sample(shard, row), s.view, PATCH)
                for s, row in zip(segments, rows, strict=True)
            ]
            result = results.pop(0)
            assert np.isfinite(result.nats[result.framed.scored]).all()
            for window in windows(Document(segments, payloads), 256, PATCH, scoring):
                ids = torch.from_numpy(window.framed.ids).long()
                with torch.no_grad():
                    logits = model.logits(ids[None])[0].double()
                alone = -logits.log_softmax(1)[torch.arange(len(ids)), ids].numpy()
                counts = window.positions >= 0
                assert result.nats[window.positions[counts]] == pytest.approx(
                    alone[counts], abs=1e-4
                )


def test_the_command_counts_the_same_bytes_for_every_scoring(
    make_set: SetMaker, tmp_path: Path
) -> None:
    """Documents that fit a row have nothing to slide over; others count the same bytes."""
    torch.manual_seed(1)
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.3})
    folder = tmp_path / "model"
    save_pretrained(Megabyte(config), config, folder, {"views": VIEWS})
    short = make_set([[text(b"sea")]], val=[[text(b"whale " * 20)], [image(8, 8, seed=1)]])
    plain = evaluate(folder, [short.location], "val", 1, "fp32", PLAIN).model
    sliding = evaluate(folder, [short.location], "val", 3, "fp32", SLIDING).model
    for name, figures in plain.items():
        assert sliding[name] == pytest.approx(figures, rel=1e-6)
    long = make_set([[text(b"sea")]], "long", val=[[text(b"whale " * 200)], [audio(900, seed=1)]])
    sizes = set()
    for scoring in SCORINGS:
        model = evaluate(folder, [long.location], "val", 1, "fp32", scoring).model
        sizes.add(tuple(model[name]["payload_bytes"] for name in ("text", "audio", "total")))
    options = ("--data", long.location, "--scoring", BOTH, "--json")
    assert json.loads(bytelm("evaluate", folder, *options).stdout)["model"] == model
    assert sizes == {(1200, 1800, 3000)}


def test_a_patch_of_one_id_has_no_half(make_set: SetMaker, tmp_path: Path) -> None:
    stage = StageConfig(width=16, layers=1, heads=2)
    config = ModelConfig(stages=(stage,), patch_sizes=(), context=256)
    save_pretrained(Megabyte(config), config, tmp_path / "flat", {"views": VIEWS})
    shard_set = make_set([[text(b"sea")]], val=[[text(b"whale")]])
    arguments = (tmp_path / "flat", "--data", shard_set.location, "--scoring", "strided")
    assert "one byte" in bytelm("evaluate", *arguments, status=2).stderr
