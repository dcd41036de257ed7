"""Samples during training: what is drawn, that training is unchanged, signals and failures."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
from helpers.commands import bytelm, command, environment, metrics, write_config
from helpers.sets import SetMaker, audio, image, text

from bytelm.modalities.base import Header
from bytelm.pipelines.checkpoints.load import load_model
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.generation.generate import generate_payloads
from bytelm.pipelines.generation.sampling_defaults import DEFAULT_SAMPLING
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.sample_requests import (
    MAX_VALUES,
    SampleRequest,
    sample_requests,
)
from bytelm.pipelines.training.samples import samples_folder

SIZES = {"steps": 6, "eval_every": 3, "checkpoint_every": 3, "sample_every": 3}


def records(run: Path, step: int) -> list[dict[str, Any]]:
    """What `samples.json` says of a step, by file."""
    loaded = json.loads((samples_folder(run, step) / "samples.json").read_text())
    assert isinstance(loaded, list)
    return loaded


def files(run: Path, step: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in samples_folder(run, step).iterdir()}


def test_sampling_changes_no_loss_and_a_resumed_run_draws_the_same(
    mixed_set: ShardSet, tmp_path: Path
) -> None:
    """Dropout is on, so that a changed state of random numbers would show."""
    config = write_config(tmp_path / "run.yaml", mixed_set, **SIZES)
    dropout = ("--set", "model.dropout=0.1")
    without, run = tmp_path / "without", tmp_path / "with"
    bytelm("train", config, "--out", without, *dropout, "--set", "train.sample_every=0")
    shown = bytelm("train", config, "--out", run, *dropout).stdout
    assert [m["loss"] for m in metrics(run)] == [m["loss"] for m in metrics(without)]
    assert metrics(run, "eval") == metrics(without, "eval")
    assert not (without / "samples").exists()
    assert f"samples in {samples_folder(run, 3)}" in shown

    first, last = files(run, 3), files(run, 6)
    assert first.keys() == last.keys()
    results = (run / "results.csv").read_text()
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    (run / "checkpoints" / "latest").write_text("step-00000003")
    bytelm("train", config, "--out", run, *dropout, "--resume")
    assert files(run, 3) == first
    assert files(run, 6) == last
    assert (run / "results.csv").read_text() == results
    rows = list(csv.DictReader(results.splitlines()))
    assert [row["step"] for row in rows] == ["3", "6"]
    for row, line in zip(rows, metrics(run, "eval"), strict=True):
        for name in ("text", "image", "audio", "total"):
            assert float(row[f"{name}_bits_per_byte"]) == line[name]["bits_per_byte"]


def test_what_is_drawn_is_described(mixed_set: ShardSet, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=1, sample_every=5)
    run = tmp_path / "run"
    bytelm("train", config, "--out", run)
    by_title: dict[str, list[dict[str, Any]]] = {}
    for record in records(run, 1):
        by_title.setdefault(record["title"], []).append(record)
    folder = samples_folder(run, 1)

    (a_text, another) = by_title["a text from its first words"]
    assert (a_text["seed"], another["seed"]) == (0, 1)
    assert "call me call me".startswith(a_text["prompt"][:15])
    assert (folder / a_text["file"]).read_text().startswith(a_text["prompt"])
    assert a_text["sampling"]["temperature"] == DEFAULT_SAMPLING["text"].temperature

    assert len(by_title["an image without a prompt"]) == 4
    for record in by_title["an image finished from its upper half"]:
        with PIL.Image.open(folder / record["file"]) as drawn:
            finished = np.asarray(drawn)
        with PIL.Image.open(folder / record["prompt"]) as real:
            assert np.array_equal(np.asarray(real)[:3], finished[:3])
            assert not np.array_equal(np.asarray(real)[3:], finished[3:])

    for record in by_title["a sound finished from its first quarter"]:
        sound, rate = soundfile.read(folder / record["file"], dtype="int16")
        real_sound, real_rate = soundfile.read(folder / record["prompt"], dtype="int16")
        assert (len(sound), rate) == (len(real_sound), real_rate) == (150, 16000)
        assert np.array_equal(sound[:37], real_sound[:37])

    for record in by_title["an image that follows a text"]:
        assert record["condition_on"] == "a caption"
        with PIL.Image.open(folder / record["file"]) as drawn:
            assert drawn.size == (6, 5)


def test_ranks_that_share_the_weights_draw_with_all_of_them(
    mixed_set: ShardSet, tmp_path: Path
) -> None:
    """At ZeRO 3: the samples of the last step are those of the exported model."""
    sizes = {"steps": 2, "global_batch": 2, "sample_every": 2, "deepspeed": "zero3"}
    config = write_config(tmp_path / "run.yaml", mixed_set, **sizes)
    run = tmp_path / "run"
    bytelm("train", config, "--out", run, "--processes", 2)
    model, dataset_info = load_model(run)
    wanted = [r for r in sample_requests([mixed_set], dataset_info) if r.request.modality == "text"]
    sampling = DEFAULT_SAMPLING["text"]
    (request,) = wanted
    drawn = generate_payloads(model, request.request, request.seeds, sampling, "fp32")
    written = [r["file"] for r in records(run, 2) if r["modality"] == "text"]
    assert [(samples_folder(run, 2) / name).read_bytes() for name in written] == drawn


def test_a_run_that_is_asked_to_stop_while_it_draws_draws_when_it_resumes(
    make_set: SetMaker, tmp_path: Path
) -> None:
    """Two ranks; the images take seconds to draw."""
    documents = [[image(64, 64, seed=i)] for i in range(4)]
    config = write_config(
        tmp_path / "run.yaml", make_set(documents), steps=3, global_batch=2, sample_every=2
    )
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("train", config, "--out", run, "--processes", 2),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    unfinished = run / "samples" / ".tmp-step-00000002"
    while not unfinished.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    shown, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "the run ends after step 2" in shown
    assert not list((run / "samples").iterdir())

    shown = bytelm("train", config, "--out", run, "--resume", "--processes", 2).stdout
    assert [f"step {step}: 8 samples" in shown for step in (2, 3)] == [True, True]
    assert len(records(run, 2)) == len(records(run, 3)) == 8


def test_a_failure_while_drawing_is_said_and_the_run_goes_on(
    mixed_set: ShardSet, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=1)
    run = tmp_path / "run"
    bytelm("train", config, "--out", run)
    (run / "samples").write_text("a file where the folder has to be")
    more = ("--resume", "--set", "train.steps=3", "--set", "train.sample_every=1")
    result = bytelm("train", config, "--out", run, *more)
    said = [line for line in result.stdout.splitlines() if "no samples were drawn" in line]
    assert [line.partition(":")[0] for line in said] == ["step 1", "step 2", "step 3"]
    assert "FileExistsError" in said[0]
    assert "Traceback" not in result.stderr
    assert [m["step"] for m in metrics(run)] == [1, 2, 3]


# --- requests ---


def requests_of(*sets: ShardSet, **views: str) -> list[SampleRequest]:
    config = PlanConfig(256, 8, {**vars(ViewsConfig()), **views})
    return sample_requests(sets, DatasetInfo.of(Plan([Source(s) for s in sets], config)))


def test_samples_of_large_files_are_small(make_set: SetMaker) -> None:
    large = [image(300, 200, seed=1), audio(50_000, channels=2), image(70_000 // 3, 1, seed=2)]
    for request in requests_of(make_set([[sample] for sample in large])):
        assert request.request.size <= 2 * MAX_VALUES
    small = make_set([[image(300, 200)], [image(20, 10, seed=3)]], "small")
    free, finished, cut = requests_of(small)
    assert free.request.header == free.request.header
    assert finished.prompt is not None
    assert finished.prompt == image(20, 10, seed=3)
    assert cut.prompt is not None
    width, height = cut.prompt.header.width, cut.prompt.header.height
    assert width / height == pytest.approx(1.5, rel=0.05)
    whole = np.frombuffer(image(300, 200).data, np.uint8).reshape(200, 300, 3)
    part = np.frombuffer(cut.prompt.data, np.uint8).reshape(height, width, 3)
    assert np.array_equal(part, whole[:height, :width])


def test_prompts_are_of_val_where_it_has_any(make_set: SetMaker) -> None:
    shard_set = make_set(
        [[text(b"of train " * 20)], [image(8, 8)]], val=[[text(b"of val " * 20)], [text(b"")]]
    )
    prompts = [request.prompt for request in requests_of(shard_set) if request.prompt]
    assert [prompt.modality for prompt in prompts] == ["text", "image"]
    assert prompts[0].data.startswith(b"of val")
    assert prompts[1].header == Header(8, 8, 3)


def test_what_cannot_begin_or_cannot_be_drawn_is_left_out(make_set: SetMaker) -> None:
    shard_set = make_set([[image(8, 8), text(b"eight by eight")], [image(4, 1)]])
    kinds = [(r.request.modality, r.title) for r in requests_of(shard_set)]
    assert kinds == [
        ("text", "a text from its first words"),
        ("image", "an image without a prompt"),
        ("image", "an image finished from its upper half"),
        ("text", "a text that follows an image"),
    ]
    planar = [r.title for r in requests_of(shard_set, image="planar")]
    assert "an image finished from its upper half" not in planar
    assert not requests_of(make_set([[text(b"a text")]], "texts"), text="file")
