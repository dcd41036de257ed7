"""Calibration: the temperature at which draws cost what data cost, kept with the model."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.commands import status
from helpers.sets import image, text, write_set
from helpers.tiny_models import tiny_model

import bytelm
from bytelm.modalities.base import Header, Sample
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.dataset_info import FINISHED, NEW, DatasetInfo
from bytelm.pipelines.evaluation.sample_scoring import sample_nats
from bytelm.pipelines.generation.calibration import (
    Piece,
    by_min_p,
    by_temperature,
    calibrate,
    read_pieces,
)
from bytelm.pipelines.generation.generate import draw_payloads
from bytelm.pipelines.generation.request import image_request

INFO = DatasetInfo(vars(ViewsConfig()), {}, frozenset(), frozenset())
IMAGE = Header(width=6, height=4, channels=3)


@pytest.fixture
def model() -> Megabyte:
    """An untrained model whose bytes are far from equally likely."""
    torch.manual_seed(0)
    return tiny_model("two", context=96, init_std=0.6).eval()


def drawn_at(model: Megabyte, sampling: Sampling, count: int = 24) -> list[Piece]:
    """Images that the model itself draws, in place of data."""
    request = image_request(IMAGE, "raster")
    payloads = draw_payloads(model, [request] * count, range(900, 900 + count), sampling, "fp32")
    return [Piece("image", IMAGE, "raster", np.frombuffer(p, np.uint8)) for p in payloads]


@pytest.mark.parametrize(("temperature", "kind"), [(0.7, NEW), (1.2, FINISHED)])
def test_the_temperature_is_that_of_the_data(
    model: Megabyte, temperature: float, kind: str
) -> None:
    pieces = drawn_at(model, Sampling(temperature))
    found = calibrate(model, pieces, by_temperature, kind)
    assert found.best.sampling.temperature == pytest.approx(temperature, abs=0.12)
    assert found.best.bits == pytest.approx(found.real_bits, rel=0.05)
    assert len(found.trials) > 1


def test_min_p_is_that_of_the_data(model: Megabyte) -> None:
    pieces = drawn_at(model, Sampling(min_p=0.05))
    found = calibrate(model, pieces, by_min_p, NEW)
    assert 0.02 < found.best.sampling.min_p < 0.12
    assert found.best.sampling.temperature == 1.0
    assert found.best.bits == pytest.approx(found.real_bits, rel=0.05)


def test_a_scale_goes_from_cheap_settings_to_dear_ones() -> None:
    """By min-p the temperature rises once nothing is cut."""
    assert by_min_p(0.0).min_p == pytest.approx(0.3)
    limits = [by_min_p(number / 10) for number in range(11)]
    assert [s.min_p for s in limits] == sorted((s.min_p for s in limits), reverse=True)
    assert [s.temperature for s in limits[:9]] == [1.0] * 9
    assert by_min_p(1.0) == Sampling(temperature=1.5)


def test_the_cost_of_finished_images_is_that_of_their_second_halves(model: Megabyte) -> None:
    pieces = drawn_at(model, Sampling(), count=3)
    found = calibrate(model, pieces, by_temperature, FINISHED)
    nats = [
        sample_nats(model, Sample("image", IMAGE, piece.payload.tobytes()), "raster")[36:]
        for piece in pieces
    ]
    assert found.real_bits == pytest.approx(np.concatenate(nats).mean() / math.log(2))


def test_files_come_from_every_set_and_texts_give_passages(tmp_path: Path) -> None:
    words = ("Größe " * 600).encode()
    texts = write_set(tmp_path / "texts", [], val=[[text(words)], [text(b"short")]])
    images = write_set(tmp_path / "images", [], val=[[image(9, 7, seed=i)] for i in range(5)])
    more = write_set(tmp_path / "more", [], val=[[image(8, 8, seed=9)]])
    sets = [texts, images, more]
    passages = read_pieces(sets, INFO, "text", "val", 4, patch=8)
    assert [piece.payload.size for piece in passages] == [1024, 1024, 1024, 1024]
    for piece in passages:
        assert piece.request(piece.half).prompt.decode()  # whole characters
        assert piece.payload.tobytes() in words
    widths = [piece.header.width for piece in read_pieces(sets, INFO, "image", "val", 4, 8)]
    assert sorted(widths) == [8, 9, 9, 9]
    assert read_pieces(sets, INFO, "audio", "val", 4, 8) == []
    assert read_pieces(sets, INFO, "image", "test", 4, 8) == []


def save(model: Megabyte, folder: Path) -> Path:
    extra = {"views": vars(ViewsConfig()), "seen": {"headers": {}, "pairs": []}}
    save_pretrained(model, model.config, folder, extra)
    return folder


def test_a_calibrated_model_draws_with_its_own_settings(
    model: Megabyte, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """New files and finished ones have settings of their own, and what was measured is shown."""
    folder = save(model, tmp_path / "model")
    documents = [[image(6, 9, seed=number)] for number in range(4)]
    data = write_set(tmp_path / "data", [], val=documents).location
    asked = ["calibrate", str(folder), "--data", str(data), "--count", "4"]
    assert status(asked) == 0
    line = r"(\w+) image: temperature (\d\.\d+) min-p (\d\.\d+)"
    shown = {kind: (t, p) for kind, t, p in re.findall(line, capsys.readouterr().out)}
    config = json.loads((folder / "config.json").read_text())
    assert config["views"] == vars(ViewsConfig())
    kept = config["sampling"]["image"]
    assert shown == {
        kind: (f"{values['temperature']:.3f}", f"{values['min_p']:.5f}")
        for kind, values in kept.items()
    }

    # Settings that no measurement gives, so that the two kinds and the defaults differ.
    kept["new"].update(temperature=1.3, top_k=3)
    kept["finished"].update(temperature=0.6, min_p=0.25)
    (folder / "config.json").write_text(json.dumps(config))
    loaded = bytelm.load(folder)
    prompt = tmp_path / "prompt.png"
    loaded.generate("image", size=(6, 9), seed=5)[0].save(prompt)
    for options, settings in (
        ({}, {"temperature": 1.3, "top_k": 3}),
        ({"prompt": str(prompt), "prompt_rows": 4}, {"temperature": 0.6, "min_p": 0.25}),
    ):
        (usual,) = loaded.generate("image", size=(6, 9), **options)
        plain = {"temperature": 1.0, "top_k": 0, "min_p": 0.0}
        (asked_for,) = loaded.generate("image", size=(6, 9), **options, **plain | settings)
        assert usual.tobytes() == asked_for.tobytes()
        (other,) = loaded.generate("image", size=(6, 9), **options, **plain)
        assert usual.tobytes() != other.tobytes()
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        out = tmp_path / f"out{len(flags)}"
        command = ["generate", str(folder), "--modality", "image", "--size", "6x9"]
        assert status([*command, "--out", str(out), *flags]) == 0
        with PIL.Image.open(out / "image-000.png") as written:
            assert written.tobytes() == usual.tobytes()


def test_what_cannot_be_calibrated_is_refused(
    model: Megabyte, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(model, tmp_path / "model")
    before = (folder / "config.json").read_bytes()
    data = str(write_set(tmp_path / "data", [], val=[[image(6, 9)]]).location)
    for asked, message in (
        ([str(folder), "--data", data, "--modality", "text", "audio"], "no text and no audio"),
        ([str(folder), "--data", data, "--split", "test"], "in test"),
        ([str(tmp_path), "--data", data], "give an exported folder"),
    ):
        assert status(["calibrate", *asked]) == 2
        assert message in capsys.readouterr().err
    assert (folder / "config.json").read_bytes() == before


def test_different_prompts_share_a_batch_and_keep_their_bytes(model: Megabyte) -> None:
    pieces = drawn_at(model, Sampling(), count=4)
    requests = [piece.request(piece.half) for piece in pieces]
    together = draw_payloads(model, requests, range(4), Sampling(), "fp32")
    for seed, (request, payload) in enumerate(zip(requests, together, strict=True)):
        assert payload.startswith(request.prompt)
        assert draw_payloads(model, [request], [seed], Sampling(), "fp32") == [payload]
    assert len({payload[36:] for payload in together}) == 4
