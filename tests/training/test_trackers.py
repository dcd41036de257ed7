"""Trackers: TensorBoard, wandb offline and trackio's local project, with their real libraries."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import command, environment, write_config
from helpers.sets import SetMaker, audio, image, text

from bytelm.pipelines.training import trackers
from bytelm.pipelines.training.samples import SavedSample
from bytelm.pipelines.training.trackers import TensorBoard, Trackers, check_trackers

SAMPLES = [
    SavedSample(Path("text-000.txt"), text(b"<b>call me\n</b>"), "a text"),
    SavedSample(Path("image-000.png"), image(1, 1, 1), "an image of one pixel"),
    SavedSample(Path("image-001.png"), image(9, 7), "an image"),
    SavedSample(Path("audio-000.wav"), audio(200, channels=2, rate=8000), "a sound"),
]


def test_tensorboard_gets_numbers_images_sounds_with_their_rate_and_texts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said: list[str] = []
    for done in (0, 3):  # the second process repeats step 4
        opened = Trackers(["tensorboard"], tmp_path, {}, done, said.append)
        for step in (3, 4) if not done else (4,):
            opened.log(step, {"train/loss": step + done})
        opened.samples(4, SAMPLES)
        opened.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 3.0), (4, 7.0)]
    assert [e.width for e in events.Images("samples/image-001")] == [9]
    (sound,) = events.Audio("samples/audio-000")
    assert (sound.sample_rate, sound.length_frames) == (8000.0, 200)
    *_, shown = events.Tensors("samples/text-000/text_summary")
    assert shown.tensor_proto.string_val[0].decode() == "    <b>call me\n    </b>\n"
    assert not said


def test_a_run_with_all_trackers_is_quiet_and_resumes_in_them(
    make_set: SetMaker, tmp_path: Path
) -> None:
    shard_set = make_set([[text(b"whale " * 9)], [image(4, 4)]], val=[[text(b"sea")]])
    config = write_config(tmp_path / "run.yaml", shard_set, steps=2, sample_every=2, eval_every=1)
    run, project = tmp_path / "run", tmp_path / "trackio"
    offline = {
        **{name: v for name, v in environment().items() if not name.startswith("WANDB")},
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(project),
        "HOME": str(tmp_path),
    }
    names = "trackers=[tensorboard, wandb, trackio]"
    asked = ["train", config, "--out", run, "--set", names]
    for more in ([], ["--resume", "--set", "train.steps=3"]):
        result = subprocess.run(
            command(*asked, *more), capture_output=True, text=True, check=True, env=offline
        )
        assert not result.stderr
        known = ("step ", "resumed", "train.steps", "next: bytelm")
        assert all(line.startswith(known) for line in result.stdout.splitlines())

    identity = json.loads((run / "trackers.json").read_text())["id"]
    folders = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert all(name.endswith(f"-{identity}") for name in folders)
    media = list((run / "wandb").rglob("media/*/samples/*"))
    assert {path.suffix for path in media} == {".png", ".html"}

    with sqlite3.connect(project / "bytelm.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert {name for name, _, _ in rows} == {f"run-{identity}"}
    steps = sorted({step for _, step, values in rows if "train/loss" in json.loads(values)})
    assert steps == [1, 2, 3]
    assert any("samples/image-000" in json.loads(values) for _, _, values in rows)


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def __init__(self, *_: object) -> None:
            print("the library's own noise")
            self.logged = 0

        def log(self, step: int, values: object) -> None:
            self.logged += 1
            if self.logged == 2:
                raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise AssertionError("a tracker that failed is not used again")

    monkeypatch.setattr(trackers, "Trackio", Full)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # set back at the end
    said: list[str] = []
    opened = Trackers(["trackio", "tensorboard"], tmp_path, {}, 0, said.append)
    for step in range(1, 5):
        opened.log(step, {"loss": np.nan})
    path = str(Path("site-packages", "trackio", "run.py"))
    warnings.warn_explicit("trackio lost\na batch", UserWarning, path, 1)
    opened.close()
    assert said == [
        "trackio records no more of this run (OSError: [Errno 28] No space left on device); the "
        "run goes on",
        "trackio: trackio lost a batch",
    ]
    assert list((tmp_path / "tensorboard").iterdir())
    assert capfd.readouterr().out == ""


def test_tensorboards_writing_thread_prints_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    opened = Trackers(["tensorboard"], tmp_path, {}, 0, said.append)
    board = opened._active["tensorboard"]
    assert isinstance(board, TensorBoard)
    writer = board._writer._get_file_writer().event_writer._async_writer
    writer._writer.close()  # as a disk that goes away
    for step in range(200):
        opened.log(step, {"loss": 1.0})
        if said:
            break
        writer._byte_queue.join()
    opened.close()
    assert len(said) == 1
    assert "tensorboard records no more of this run" in said[0]
    assert "Traceback" not in capfd.readouterr().err


def test_a_tracker_that_cannot_start_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, make_set: SetMaker, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", make_set([[text(b"whale")]]), steps=1)
    asked = ["train", config, "--out", tmp_path / "run", "--set", "trackers=[wandb]"]
    without_account = {name: v for name, v in os.environ.items() if not name.startswith("WANDB")}
    result = subprocess.run(
        command(*asked),
        capture_output=True,
        text=True,
        check=False,
        env={**without_account, "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")},
    )
    assert result.returncode == 2
    assert result.stderr == (
        "bytelm train: trackers names wandb, which is not logged in here: run `wandb login`, set "
        "WANDB_MODE=offline, or leave it out\n"
    )

    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"pip install 'bytelm\[trackio\]'"):
        check_trackers(["trackio"])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match="pip install 'tensorboard'"):  # an extra of no name
        check_trackers(["tensorboard"])
