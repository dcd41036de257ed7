"""Pairs: bits with and without the condition, against each framing scored by itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.commands import TINY_MODEL
from helpers.sets import SetMaker, audio, image, text
from rich.console import Console

from bytelm.modalities import framing
from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.evaluation import SCORINGS
from bytelm.pipelines.evaluation.documents import documents_by_shard
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.evaluation.table import print_evaluation
from bytelm.pipelines.evaluation.windows import Document

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


def save_model(folder: Path, pairs: list[list[str]]) -> Megabyte:
    torch.manual_seed(1)
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.3})
    model = Megabyte(config).eval()
    extra = {"views": VIEWS, "seen": {"headers": {}, "pairs": pairs}}
    save_pretrained(model, config, folder, extra)
    return model


def bits_by_segment(model: Megabyte, document: Document) -> list[float]:
    """Bits of each segment's payload, by the uncached logits of the document alone."""
    spans = [
        framing.Span(i, 0, framing.body_length(segment.size, 8))
        for i, segment in enumerate(document.segments)
    ]
    framed = document.frame(spans, 8)
    ids = torch.from_numpy(framed.ids).long()
    with torch.no_grad():
        logits = model.logits(ids[None])[0].double()
    bits = -logits.log_softmax(1)[torch.arange(len(ids)), ids].numpy() / math.log(2)
    return [float(bits[part.payload].sum()) for part in framing.parse(framed.ids, 8)]


@pytest.mark.parametrize("scoring", SCORINGS[:2])
def test_bits_are_those_of_the_segments_behind_their_condition_and_alone(
    scoring: str, make_set: SetMaker, tmp_path: Path
) -> None:
    """The model learned captions before images and behind them, and sounds before texts only."""
    learned = [["text", "image"], ["image", "text"], ["audio", "text"]]
    model = save_model(tmp_path / "model", learned)
    documents = [
        [text(b"a red square"), image(5, 4, seed=1)],
        [text(b"noise"), image(4, 4, seed=2)],
        [audio(40, seed=3), text(b"a hiss")],
        [text(b"no pair")],
    ]
    shard_set = make_set(documents)
    result = evaluate(tmp_path / "model", [shard_set.location], "train", 2, "fp32", scoring)
    plan = Plan([Source(shard_set)], PlanConfig(256, 8, VIEWS))
    loaded = [stored.load(8) for shard in documents_by_shard(plan) for stored in shard]
    expected = {"text": [0.0, 0.0], "image": [0.0, 0.0]}
    for document in loaded[:3]:
        first, second = (segment.modality.name for segment in document.segments)
        expected[second][0] += bits_by_segment(model, document)[1]
        expected[second][1] += bits_by_segment(model, document.only([1]))[0]
        if first == "text":
            expected[first][0] += bits_by_segment(model, document.only([1, 0]))[1]
            expected[first][1] += bits_by_segment(model, document)[0]
    sizes = {"text": 12 + 5 + 6, "image": 60 + 48}
    assert result.pairs.keys() == expected.keys()
    for name, (with_condition, without) in expected.items():
        figures, size = result.pairs[name], sizes[name]
        assert figures["with_condition"] == pytest.approx(with_condition / size, rel=1e-5)
        assert figures["without_condition"] == pytest.approx(without / size, rel=1e-5)
        assert figures["gain_bits"] == pytest.approx(without - with_condition, abs=1e-3)
        assert figures["documents"] == (3 if name == "text" else 2)
    console = Console(width=80)
    with console.capture() as shown:
        print_evaluation(console, result)
    assert "pairs" in shown.get()


def test_sets_without_pairs_have_no_figures_of_them(make_set: SetMaker, tmp_path: Path) -> None:
    save_model(tmp_path / "model", [])
    shard_set = make_set([[text(b"call me")], [image(3, 3)]])
    result = evaluate(tmp_path / "model", [shard_set.location], "train", 1, "fp32")
    assert result.pairs == {}
    console = Console(width=80)
    with console.capture() as shown:
        print_evaluation(console, result)
    assert "pairs" not in shown.get()
