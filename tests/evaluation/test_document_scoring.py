"""Scores of a document's windows in order, by a model that learns or mixes its outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import bytelm
from helpers.sets import SetMaker, text
from helpers.tiny_models import OPTIONS, tiny_config

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header
from bytelm.modalities.framing import Segment
from bytelm.model.adaptation import Adaptation
from bytelm.model.codec_features.vectorized import compute_places
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.mixer import DocumentMixer
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.data.windows import growing_window_spans, window_spans
from bytelm.pipelines.evaluation import ADAPT, PLAIN, SLIDING
from bytelm.pipelines.evaluation.document_scoring import score_adapting, score_in_order
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.evaluation.windows import Document

PATCH = 4
FAST = Adaptation(rate=0.01, window=96, step=32)
"""Learning that shows within a few small windows."""
VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


def new_model(**options: object) -> Megabyte:
    torch.manual_seed(5)
    return Megabyte(tiny_config("two", 128, **{**OPTIONS["modern"], **options})).eval()


def pair(size: int) -> Document:
    """A text of a repeated word, and an image of random pixels in lines of 21 bytes."""
    pixels = np.random.default_rng(size).integers(0, 256, 21 * (size // 21), np.uint8)
    words = np.resize(np.frombuffer(b"a whale and a sail. ", np.uint8), size)
    image = Segment(MODALITIES["image"], Header(7, size // 21, 3), "raster", len(pixels))
    return Document([Segment(MODALITIES["text"], Header(), "utf8", size), image], [words, pixels])


def test_ids_are_scored_before_the_model_learns_from_them() -> None:
    """A change of a late byte leaves the nats of all bytes before it as they are."""
    model, document = new_model(output_mixing=True), pair(300)
    changed = Document(document.segments, [document.payloads[0].copy(), document.payloads[1]])
    changed.payloads[0][250] ^= 1
    first, second = (score_adapting(d, model, "fp32", FAST).nats for d in (document, changed))
    position = int(
        np.flatnonzero(score_adapting(document, model, "fp32", FAST).framed.payload)[250]
    )
    assert np.array_equal(first[:position], second[:position])
    assert not np.array_equal(first[position:], second[position:])


@pytest.mark.parametrize("mixing", [False, True])
def test_a_document_teaches_and_leaves_the_model_as_it_is(mixing: bool) -> None:
    model, document = new_model(output_mixing=mixing), pair(900)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scored = score_adapting(document, model, "fp32", FAST)
    words = scored.nats[scored.framed.payload][:900]
    assert words[-200:].mean() < 0.5 * words[:200].mean()
    again = score_adapting(document, model, "fp32", FAST)
    assert np.array_equal(scored.nats[scored.framed.scored], again.nats[scored.framed.scored])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("scoring", [ADAPT, PLAIN, SLIDING])
def test_mixing_is_that_of_the_whole_document(scoring: str) -> None:
    """Without steps of the network, against one mixer that reads the document's ids in one go."""
    model, document = new_model(output_mixing=True), pair(400)
    windows = window_spans(document.segments, 128, PATCH, scoring == SLIDING, shift=False)
    if scoring == ADAPT:
        windows = growing_window_spans(document.segments, 96, 32, PATCH)
        scored = score_adapting(document, model, "fp32", Adaptation(0.0, 96, 32))
    else:
        scored = score_in_order(document, model, "fp32", overlap=scoring == SLIDING)
    ids = torch.from_numpy(scored.framed.ids.astype(np.int64))
    logits = torch.zeros(len(ids), model.config.vocab_size)
    for spans, positions in windows:
        framed = document.frame(spans, PATCH)
        is_new = torch.from_numpy(positions >= 0)
        with torch.no_grad():
            of_window = model.logits(torch.from_numpy(framed.ids.astype(np.int64))[None])[0]
        logits[positions[is_new]] = of_window[is_new]
    places = compute_places(ids[None], torch.zeros(1, 1, dtype=torch.int32), PATCH)[0]
    opens_document = torch.arange(len(ids)) == 0
    expected = DocumentMixer(len(ids)).nats(logits, ids, places, opens_document).numpy()
    counts = scored.framed.scored
    assert scored.nats[counts] == pytest.approx(expected[counts], abs=1e-4)


def test_the_command_scores_each_document_alone_in_any_number_of_processes(
    make_set: SetMaker, tmp_path: Path
) -> None:
    model = new_model()
    save_pretrained(model, model.config, tmp_path / "model", {"views": VIEWS})
    documents = [[text(bytes([65 + n]) * 400)] for n in range(3)]
    location = make_set(documents).location
    results = [
        evaluate(tmp_path / "model", [location], "train", batch, "fp32", ADAPT) for batch in (1, 9)
    ]
    assert results[0].model == results[1].model
    assert [d["bits"] for d in results[0].documents] == [d["bits"] for d in results[1].documents]
    sliding = evaluate(tmp_path / "model", [location], "train", 1, "fp32", SLIDING)
    for adapted, plain in zip(results[0].documents, sliding.documents, strict=True):
        assert adapted["bits"] < plain["bits"]
    arguments = "evaluate", tmp_path / "model", "--data", location, "--split", "train", "--adapt"
    shown = bytelm(*arguments, "--processes", "2").stdout
    assert "model, adapt" in shown
    assert f"{results[0].model['text']['bits_per_byte']:.3f}" in shown
    refused = bytelm(*arguments, "--scoring", "plain", status=2).stderr
    assert "not allowed with" in refused


def test_a_window_is_whole_patches_of_the_context() -> None:
    config = new_model().config
    adaptation = Adaptation(1.0, 1000, 99)
    assert adaptation.window_length(config) == 128
    assert adaptation.window_length(replace(config, context=1 << 16)) == 1000
    assert adaptation.step_length(config) == 64
    assert adaptation.step_length(replace(config, context=1 << 16)) == 96
    assert Adaptation(1.0, 1, 1).step_length(config) == 4 * PATCH
