"""Figures of what a model draws: the classifier, statistics, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import environment
from helpers.sets import audio, image, text, write_set
from helpers.tiny_models import tiny_model

from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.config import ViewsConfig
from bytelm.tools.experiments.real_or_drawn import (
    image_statistics,
    nearest_distance,
    sound_statistics,
    taken_for_real,
)


def noise(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, 5))


def test_files_like_real_ones_are_taken_for_real_half_the_time() -> None:
    of_real, of_drawn = taken_for_real(noise(400, 1), noise(400, 2), 400)
    assert of_real == pytest.approx(0.5, abs=0.1)
    assert of_drawn == pytest.approx(0.5, abs=0.1)


def test_files_unlike_real_ones_are_told_apart_also_where_they_are_few() -> None:
    assert taken_for_real(noise(200, 1), noise(200, 2, 4.0), 200) == (1.0, 0.0)
    of_real, of_drawn = taken_for_real(noise(200, 1), noise(8, 2, 3.0), 8)
    assert of_real > 0.9
    assert of_drawn < 0.3


def test_a_file_is_judged_by_a_classifier_that_never_saw_its_beginning() -> None:
    """Pairs of a real and a drawn file lie at places of their own, apart from all others: who has
    seen one of a pair takes the other for the same."""
    places = 100.0 * np.eye(16)
    of_real, of_drawn = taken_for_real(places, np.concatenate([places, places]), 16)
    assert of_real == pytest.approx(of_drawn, abs=0.01)


def test_statistics_tell_colours_edges_pitch_and_silence() -> None:
    flat = np.full((8, 9, 3), 200, np.uint8)
    rough = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    assert np.isfinite([image_statistics(flat), image_statistics(rough)]).all()
    assert image_statistics(flat).shape == image_statistics(rough).shape
    assert image_statistics(flat[..., :1]).tolist() == image_statistics(flat).tolist()
    assert not np.allclose(image_statistics(rough), image_statistics(rough[::-1] // 2))
    seconds = np.arange(4000) / 8000
    tone, silence = 0.5 * np.sin(2 * np.pi * 200 * seconds), np.zeros(4000)
    found = {name: sound_statistics(wave, 8000) for name, wave in (("t", tone), ("s", silence))}
    assert np.isfinite([*found.values()]).all()
    assert found["t"][10] == pytest.approx(200, rel=0.03)
    assert (found["t"][4], found["s"][4]) == (0.0, 1.0)


def test_the_nearest_image_is_the_copy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    assert nearest_distance(images[1], images) == 0.0
    assert nearest_distance(np.zeros((2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 9, np.uint8)) == 9


@pytest.mark.long
@pytest.mark.parametrize("is_new", [False, True])
def test_the_command_prints_figures_beside_those_of_real_files(
    tmp_path: Path, is_new: bool
) -> None:
    model = tiny_model("two", context=96)
    headers = {"image": [[9, 8, 3]], "audio": [[8000, 1]]}
    extra = {"views": vars(ViewsConfig()), "seen": {"headers": headers, "pairs": []}}
    save_pretrained(model, model.config, tmp_path / "model", extra)
    documents = [
        *([image(9, 8, 1 if i == 4 else 3, seed=i)] for i in range(9)),
        *([audio(4200, rate=8000, seed=i)] for i in range(2)),
        *([text(b"the quick brown fox " * 31)] for _ in range(2)),
    ]
    data = write_set(tmp_path / "data", documents, val=documents).location
    kinds = {"image": "nearest", "audio": "spectrum", "text": "words"}
    for modality, figure in list(kinds.items())[: 1 if is_new else 3]:
        arguments = ["-m", "bytelm.tools.experiments.sampling", tmp_path / "model"]
        arguments += ["--data", data, "--modality", modality, "--prompts", 9, "--keep", tmp_path]
        arguments += ["--settings", '[null, {"min_p": 0.3}]', "--judge", tmp_path / "model"]
        arguments += ["--new"] if is_new else []
        line = [sys.executable, *map(str, arguments)]
        ran = subprocess.run(line, capture_output=True, text=True, check=True, env=environment())
        lines = [json.loads(line) for line in ran.stdout.splitlines()]
        figures = {line["name"]: line for line in lines}
        for setting in ("default", "min_p=0.3"):
            bits = figures[f"sampling/{modality}/{setting}/bits"]
            assert bits["value"] == figures[f"sampling/{modality}/{setting}/judged"]["value"]
            assert bits["reference"] > 4.0
            assert f"sampling/{modality}/{setting}/{figure}" in figures
    kind = "new" if is_new else "finished"
    assert (tmp_path / f"image-{kind}-default.png").is_file()
    assert len([*tmp_path.glob(f"image-{kind}-default-*.png")]) == 9
