"""Bits per byte against the definition, id by id, and what the command prints of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import TINY_MODEL, bytelm
from helpers.evaluations import made_up_evaluation
from helpers.run_folders import add_checkpoint
from rich.console import Console
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.load import load_model
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.checkpoints.run_folder import checkpoint_step
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import EvaluationRows
from bytelm.pipelines.evaluation import ADAPT, SCORINGS, SLIDING
from bytelm.pipelines.evaluation import evaluate as evaluation
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.evaluation.scoring import NatsOf, Scores, nats_of_model
from bytelm.pipelines.evaluation.table import print_evaluation
from bytelm.pipelines.shards.reader import ShardSet

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.3})
    save_pretrained(Megabyte(config), config, tmp_path / "model", {"views": VIEWS})
    return tmp_path / "model"


@pytest.mark.parametrize("batch", [1, 3])
def test_bits_per_byte_is_the_sum_over_the_documents(
    mixed_set: ShardSet, model_folder: Path, batch: int
) -> None:
    """Each document is framed and scored by itself, piece by piece, with the naive softmax of all
    logits; the packed rows of the evaluation have to give the same sums."""
    metrics = evaluate(model_folder, [mixed_set.location], "train", batch, "fp32").model
    model, _ = load_model(model_folder)
    plan = Plan([Source(mixed_set)], PlanConfig(256, 8, VIEWS))
    payload = dict.fromkeys(MODALITIES, 0.0)
    frame = dict.fromkeys(MODALITIES, 0.0)
    count = dict.fromkeys(MODALITIES, 0)
    for shard in mixed_set.split("train"):
        index = mixed_set.index(shard)
        for document in np.unique(index["document"]):
            rows = index[index["document"] == document]
            segments = [plan.segment(row) for row in rows]
            samples = [mixed_set.sample(shard, row) for row in rows]
            views = [
                s.modality.to_view(x, s.view, 8) for s, x in zip(segments, samples, strict=True)
            ]
            for spans in framing.split_document(
                [(s.modality, s.size) for s in segments], 8, lambda: 256
            ):
                framed = framing.frame(
                    spans, segments, lambda i, a, b, views=views: views[i][a:b], 8
                )
                ids = torch.from_numpy(framed.ids).long()
                with torch.no_grad():
                    logits = model.logits(ids[None])[0].double()
                nats = -logits.log_softmax(1)[torch.arange(len(ids)), ids].numpy()
                for name, modality in MODALITIES.items():
                    in_modality = framed.modality == modality.code
                    payload[name] += nats[in_modality & framed.payload].sum()
                    frame[name] += nats[in_modality & framed.scored & ~framed.payload].sum()
                    count[name] += int((in_modality & framed.payload).sum())
    for name in MODALITIES:
        assert metrics[name]["payload_bytes"] == count[name]
        bits = payload[name] / math.log(2) / count[name]
        assert metrics[name]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
        coded = (payload[name] + frame[name]) / math.log(2) / count[name]
        assert metrics[name]["coded_bits_per_byte"] == pytest.approx(coded, rel=1e-5)
    total = sum(payload.values()) / math.log(2) / sum(count.values())
    assert metrics["total"]["bits_per_byte"] == pytest.approx(total, rel=1e-5)


def test_a_uniform_model_pays_the_logarithm_of_the_vocabulary(mixed_set: ShardSet) -> None:
    plan = Plan([Source(mixed_set, "val")], PlanConfig(256, 8, VIEWS))
    scores = Scores(patch=8)
    uniform = math.log(framing.VOCAB_SIZE)
    loader = make_loader(plan, EvaluationRows(plan.rows(0), 2, 0, 1), 0)
    for batch in loader:
        scores.add_batch(batch, torch.full(batch.ids.shape, uniform))
    for name, figures in scores.figures().items():
        assert figures["bits_per_byte"] == pytest.approx(math.log2(264)), name
        assert figures["coded_bits_per_byte"] > figures["bits_per_byte"]


def test_ranks_add_up(mixed_set: ShardSet) -> None:
    plan = Plan([Source(mixed_set)], PlanConfig(256, 8, VIEWS))

    def scores_of_rank(rank: int, ranks: int) -> Scores:
        scores = Scores(patch=8)
        loader = make_loader(plan, EvaluationRows(plan.rows(0), 2, rank, ranks), 0)
        for batch in loader:
            scores.add_batch(batch, batch.ids.double() / 100)
        return scores

    total, parts = scores_of_rank(0, 1), [scores_of_rank(rank, 3) for rank in range(3)]
    for name, head in total.heads.items():
        assert np.array_equal(sum(part.heads[name].sums for part in parts), head.sums)


def test_documents_and_maps_add_up_to_the_figures(mixed_set: ShardSet, model_folder: Path) -> None:
    """Documents lie in rows piece by piece, and two of a pair's modalities are two entries."""
    result = evaluate(model_folder, [mixed_set.location], "train", 2, "fp32")
    keys = [document["key"] for document in result.documents]
    assert len(keys) == 14
    assert len(set(keys)) == result.about["documents"] == result.about["documents_in_split"] == 13
    for name, figures in result.model.items():
        chosen = [d for d in result.documents if name in (d["modality"], "total")]
        assert sum(d["bytes"] for d in chosen) == figures["payload_bytes"]
        for key, bits in (("bits_per_byte", "bits"), ("coded_bits_per_byte", "coded_bits")):
            total = sum(d[bits] for d in chosen)
            assert total / figures["payload_bytes"] == pytest.approx(figures[key], rel=1e-13)
        low, high = result.intervals[name]["bits_per_byte"]
        assert low <= figures["bits_per_byte"] <= high
        for bit_map in result.maps.get(name, []):
            if bit_map["name"] == "patch_position":
                total = sum(bit_map["bits"])
                assert total == pytest.approx(figures["bits_per_byte"] * sum(bit_map["bytes"]))


@pytest.mark.parametrize("scoring", [*SCORINGS, ADAPT])
def test_a_document_has_the_same_bits_whichever_are_scored_beside_it(
    scoring: str, mixed_set: ShardSet, model_folder: Path
) -> None:
    whole = evaluate(model_folder, [mixed_set.location], "train", 1, "fp32", scoring)
    part = evaluate(model_folder, [mixed_set.location], "train", 1, "fp32", scoring, limit=4)
    assert part.about["documents"] == 4
    assert part.about["documents_in_split"] == 13
    bits = {(d["key"], d["modality"]): d["bits"] for d in whole.documents}
    assert 4 <= len(part.documents) <= 5
    for document in part.documents:
        key = document["key"], document["modality"]
        assert document["bits"] == pytest.approx(bits[key], rel=1e-5)
    counted = {n: f["payload_bytes"] for n, f in part.model.items() if n != "total"}
    assert sum(counted.values()) == sum(d["bytes"] for d in part.documents)
    assert set(part.codecs) == set(counted)


def test_a_set_that_is_named_twice_is_refused(mixed_set: ShardSet, model_folder: Path) -> None:
    with pytest.raises(ValueError, match="would count twice"):
        evaluate(model_folder, [mixed_set.location] * 2, "train", 1, "fp32")


def test_the_number_of_threads_changes_no_digit(mixed_set: ShardSet, model_folder: Path) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            result = evaluate(model_folder, [mixed_set.location], "train", 2, "fp32", SLIDING)
            assert torch.get_num_threads() == count
            results.append({**result.to_dict(), "about": None})
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]


def test_the_table_shows_every_figure_in_80_columns() -> None:
    console = Console(width=80)
    with console.capture() as shown:
        print_evaluation(console, made_up_evaluation({"documents_in_split": 7, "limit": 2}))
    text = shown.get()
    assert "cjxl 0.7.0 (JPEG XL e7, JPEG XL e9)" in text
    assert text.index("chunks of 2,048 bytes") < text.index("2.468")
    for figure in ("1.234", "1.235", "1.111–1.357", "2.001", "2.003", "2.005", "2.161"):
        assert figure in text
    for word in ("123.5 MB", "14.3 MB", "2 of 7 documents", "no WavPack: apt-get install wavpack"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_document_on_which_the_model_diverged_has_no_bits_and_is_named(
    mixed_set: ShardSet, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of all ids of images are no numbers."""

    def diverging(model: Megabyte, precision: str) -> NatsOf:
        compute = nats_of_model(model, precision)

        def nats_of(batch: Batch) -> Tensor:
            nats = compute(batch)
            is_image = batch.patch_modality == MODALITIES["image"].code
            nats[is_image.repeat_interleave(8, dim=1)] = math.nan
            return nats

        return nats_of

    monkeypatch.setattr(evaluation, "nats_of_model", diverging)
    result = evaluate(model_folder, [mixed_set.location], "train", 2, "fp32")
    values = result.to_dict()
    for name, figures in values["model"].items():
        has_figure = name in ("text", "audio")
        assert (figures["bits_per_byte"] is not None) == has_figure
        assert (name in values["intervals"]) == has_figure
    for document in values["documents"]:
        has_bits = document["modality"] != "image"
        assert (document["bits"] is not None) == has_bits
        assert (document["coded_bits"] is not None) == has_bits
    console = Console(width=80)
    with console.capture() as shown:
        print_evaluation(console, result)
    assert "no figure for image: the model diverged on 4 of its 4 documents" in shown.get()


def test_the_command_keeps_the_evaluation_of_a_run(
    mixed_set: ShardSet, model_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    add_checkpoint(run, model_folder, step=7)
    arguments = ("evaluate", run, "--data", mixed_set.location, "--limit", "2")
    shown = json.loads(bytelm(*arguments, "--json").stdout)
    (path,) = (run / "evaluations").iterdir()
    assert path.name == "step-00000007-val-plain.json"
    assert json.loads(path.read_text()) == shown
    assert shown["about"]["step"] == 7
    assert (shown["about"]["documents"], shown["about"]["documents_in_split"]) == (2, 3)
    assert checkpoint_step(model_folder) is None


def test_the_command_prints_a_table_and_refuses_what_is_missing(
    mixed_set: ShardSet, model_folder: Path, tmp_path: Path
) -> None:
    shown = bytelm("evaluate", model_folder, "--data", mixed_set.location).stdout
    for word in ("text", "image", "audio", "total", "gzip", "xz", "PNG", "FLAC", "95 %"):
        assert word in shown
    for arguments, message in (
        ((tmp_path / "none", "--data", mixed_set.location), "no model at"),
        ((mixed_set.location, "--data", mixed_set.location), "neither a run"),
        ((model_folder, "--data", tmp_path / "none"), "no shard set"),
        ((model_folder, "--data", mixed_set.location, "--split", "test"), "no documents in split"),
    ):
        error = bytelm("evaluate", *arguments, status=2).stderr
        assert message in error
        assert error.count("\n") == 1
    for path in (model_folder / "config.json", Path(mixed_set.location) / "manifest.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "format": 99}))
        error = bytelm("evaluate", model_folder, "--data", mixed_set.location, status=2).stderr
        assert "format" in error
        assert "99" in error
        assert error.count("\n") == 1
        path.write_text(json.dumps(values))
