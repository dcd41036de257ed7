"""Samples during training: what is drawn, that training is unchanged, signals and failures."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from helpers.commands import TINY_MODEL, bytelm, command, environment, metrics, write_config
from helpers.sets import SetMaker, audio, image, text, write_set

from bytelm.modalities.base import Header
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.load import load_model
from bytelm.pipelines.config import RunConfig, ViewsConfig, load_config
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.generation.generate import generate_payloads
from bytelm.pipelines.generation.sampling_defaults import DEFAULT_SAMPLING
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training import samples
from bytelm.pipelines.training.sample_requests import (
    MAX_VALUES,
    SampleRequest,
    sample_requests,
)
from bytelm.pipelines.training.samples import SampleDrawer, samples_folder

SIZES = {"steps": 6, "eval_every": 3, "checkpoint_every": 3, "sample_every": 3}


def records(run: Path, step: int) -> list[dict[str, Any]]:
    """The records of `samples.json` of a step, by file."""
    loaded = json.loads((samples_folder(run, step) / "samples.json").read_text())
    assert isinstance(loaded, list)
    return loaded


def files(run: Path, step: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in samples_folder(run, step).iterdir()}


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Texts, images, sounds and a pair; one of each modality in `val`."""
    texts = [[text(b"the white whale and the ship " * n)] for n in (1, 5, 20)]
    images = [[image(w, h, c, seed=w)] for w, h, c in ((1, 1, 1), (8, 8, 3), (20, 15, 3))]
    sounds = [[audio(n, c, seed=n)] for n, c in ((3, 1), (100, 2), (700, 1))]
    pair = [[text(b"a caption"), image(6, 5, seed=3)]]
    return write_set(
        tmp_path_factory.mktemp("sets") / "mixed",
        texts + images + sounds + pair,
        val=[[text(b"call me " * 20)], [image(9, 7, seed=5)], [audio(150, seed=6)]],
    )


@pytest.fixture(scope="module")
def sampled(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a run of it; dropout is on."""
    folder = tmp_path_factory.mktemp("sampled")
    model = TINY_MODEL | {"dropout": 0.1}
    config = write_config(folder / "run.yaml", shard_set, model, **SIZES)
    shown = bytelm("train", config, "--out", folder / "run").stdout
    assert f"samples in {samples_folder(folder / 'run', 3)}" in shown
    return folder


def test_sampling_changes_no_loss(sampled: Path, tmp_path: Path) -> None:
    """With dropout a changed state of random numbers would show."""
    without = tmp_path / "without"
    never = ("--set", "train.sample_every=0", "--set", "trackers=[]")
    bytelm("train", sampled / "run.yaml", "--out", without, *never)
    for kind in ("train", "eval"):
        lines = zip(metrics(sampled / "run", kind), metrics(without, kind), strict=True)
        for line, line_without in lines:
            for name in line.keys() & {"loss", "grad_norm", "text", "image", "audio"}:
                assert line[name] == line_without[name]
    assert not (without / "samples").exists()
    assert not (without / "tensorboard").exists()


def test_a_resumed_run_draws_the_same_and_keeps_its_results(sampled: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(sampled / "run", run)
    first, last, results = files(run, 3), files(run, 6), (run / "results.csv").read_text()
    assert first.keys() == last.keys()
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    (run / "checkpoints" / "latest").write_text("step-00000003")
    bytelm("train", sampled / "run.yaml", "--out", run, "--resume")
    assert files(run, 3) == first
    assert files(run, 6) == last
    assert (run / "results.csv").read_text() == results
    rows = list(csv.DictReader(results.splitlines()))
    assert [row["step"] for row in rows] == ["3", "6"]
    for row, line in zip(rows, metrics(run, "eval"), strict=True):
        for name in ("text", "image", "audio", "total"):
            assert float(row[f"{name}_bits_per_byte"]) == line[name]["bits_per_byte"]


def test_what_is_drawn_is_described(sampled: Path) -> None:
    run, folder = sampled / "run", samples_folder(sampled / "run", 6)
    by_title: dict[str, list[dict[str, Any]]] = {}
    for record in records(run, 6):
        by_title.setdefault(record["title"], []).append(record)

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
    shard_set: ShardSet, tmp_path: Path
) -> None:
    """At ZeRO 3: the samples of the last step are those of the exported model."""
    sizes = {"steps": 2, "global_batch": 2, "sample_every": 2, "deepspeed": "zero3"}
    config = write_config(tmp_path / "run.yaml", shard_set, **sizes)
    run = tmp_path / "run"
    bytelm("train", config, "--out", run, "--processes", 2)
    model, dataset_info = load_model(run)
    wanted = [r for r in sample_requests([shard_set], dataset_info) if r.request.modality == "text"]
    sampling = DEFAULT_SAMPLING["text"]
    (request,) = wanted
    drawn = generate_payloads(model, request.request, request.seeds, sampling, "fp32")
    written = [r["file"] for r in records(run, 2) if r["modality"] == "text"]
    assert [(samples_folder(run, 2) / name).read_bytes() for name in written] == drawn


def test_a_run_that_is_asked_to_stop_while_it_draws_draws_when_it_resumes(
    make_set: SetMaker, tmp_path: Path
) -> None:
    """Two ranks, then one; the images take a second or more to draw."""
    documents = [[image(24, 24, seed=i)] for i in range(4)]
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

    (run / "samples" / "notes.txt").write_text("of the user")
    (run / "samples" / ".tmp-step-00000009").mkdir()  # a killed process left it
    shown = bytelm("train", config, "--out", run, "--resume").stdout
    assert not (run / "samples" / ".tmp-step-00000009").exists()
    assert (run / "samples" / "notes.txt").exists()
    assert [f"step {step}: 8 samples" in shown for step in (2, 3)] == [True, True]
    assert len(records(run, 2)) == len(records(run, 3)) == 8


class OneRank:
    """As much of an engine as a drawer of one rank needs."""

    rank = 0

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.device = torch.device("cpu")
        self.weights = Megabyte(config.model).state_dict()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.weights)

    def sum_over_ranks(self, values: Sequence[float], dtype: torch.dtype) -> list[float]:
        return list(values)


def test_what_ends_the_drawing_is_said_and_leaves_no_part(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_config(tmp_path / "run.yaml", shard_set, steps=1), [])
    plan = Plan([Source(shard_set)], PlanConfig(256, 8, vars(ViewsConfig())))
    engine: Any = OneRank(config)
    drawer = SampleDrawer(engine, tmp_path, [shard_set], DatasetInfo.of(plan))
    state = torch.get_rng_state()

    monkeypatch.setattr(samples, "DRAWING_SECONDS", -1.0)
    late = drawer.draw(1, lambda: False)
    assert late is not None
    assert "0 samples" in late.message
    assert "12 more would have taken longer" in late.message
    monkeypatch.undo()

    assert drawer.draw(2, lambda: True) is None
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(PIL.Image.Image, "save", lambda *_: (_ for _ in ()).throw(full))
    failed = drawer.draw(3, lambda: False)
    assert failed is not None
    assert not failed.samples
    assert failed.message == (
        "step 3: no samples were drawn (OSError: [Errno 28] No space left on device)"
    )
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-00000001"]
    assert torch.equal(torch.get_rng_state(), state)


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
    assert free.request.size <= MAX_VALUES
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
    config = PlanConfig(256, 8, vars(ViewsConfig()))
    info = DatasetInfo.of(Plan([Source(shard_set)], config))
    of_files = replace(info, views={"text": "file", "image": "file", "audio": "s16be"})
    assert not sample_requests([shard_set], of_files)
