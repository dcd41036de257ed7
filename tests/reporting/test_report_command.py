"""`bytelm report` on runs that `bytelm train` made, and the record that a training keeps."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.commands import bytelm, command, environment, status, write_config
from helpers.sets import audio, image, text, write_set

from bytelm.pipelines.training.sessions import read_sessions


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps on texts, images and sounds."""
    folder = tmp_path_factory.mktemp("trained")
    val = [[text(b"call me " * n)] for n in (3, 9, 20)] + [[image(9, 7)], [audio(150)]]
    shard_set = write_set(folder / "set", [[text(b"whale " * 200)], [image(16, 9)]], val=val)
    config = write_config(folder / "run.yaml", shard_set, steps=8, eval_every=4, global_batch=2)
    bytelm("train", config, "--out", folder / "run")
    return folder / "run"


def test_a_training_records_each_session_with_versions_machine_and_peak_memory(
    trained: Path,
) -> None:
    (session,) = read_sessions(trained)
    assert (session["first_step"], session["last_step"]) == (0, 8)
    assert session["command"].startswith("bytelm train ")
    assert {"torch", "numpy", "python"} <= set(session["versions"])
    assert session["machine"]["cores"] > 0
    assert session["started"] <= session["ended"]
    assert session["peak_memory"]["resident"] > 10_000_000


def test_a_report_evaluates_the_newest_checkpoint_once_and_prints_its_path(trained: Path) -> None:
    first = bytelm("report", trained)
    assert first.stdout == f"report: {trained / 'report.html'}\n"
    assert "on 5 of 5 documents of val" in first.stderr
    (kept,) = (trained / "evaluations").iterdir()
    page = (trained / "report.html").read_text("utf-8")
    assert all(words in page for words in ("WavPack", "8 of 8", "by script", "What surprises"))
    stamp = kept.stat().st_mtime_ns
    again = bytelm("report", trained)
    assert "evaluating" not in again.stderr
    assert kept.stat().st_mtime_ns == stamp


def test_numbers_are_printed_in_full(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["report", str(trained), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    (run,) = values["runs"]
    assert run["cost"]["steps"] == 8
    assert run["curves"]["Training loss"]["loss"]["step"] == [1, 2, 3, 4, 5, 6, 7, 8]
    figures = run["evaluation"]["model"]["total"]
    evaluated = json.loads(next((trained / "evaluations").iterdir()).read_text())
    assert figures == evaluated["model"]["total"]
    assert [record["step"] for record in run["evaluations"]] == [4, 8]
    assert status(["report", str(trained), "--markdown"]) == 0
    assert f"| total | {figures['bits_per_byte']:.3f} |" in capsys.readouterr().out


def test_mistakes_are_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        [tmp_path],
        [trained, "--out", tmp_path],
        [trained, "--json", "--out", tmp_path / "x"],
        [trained, "--json", "--markdown"],
    ):
        assert status(["report", *map(str, arguments)]) == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        assert shown.startswith("bytelm report: ")


def test_a_report_of_a_run_that_is_being_trained_leaves_it_alone(
    trained: Path, tmp_path: Path
) -> None:
    config = trained.parent / "run.yaml"
    run = tmp_path / "run"
    arguments = command("train", config, "--out", run, "--set", "train.steps=100000")
    training = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment())
    try:
        metrics = run / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        bytelm("report", run, "--limit", 0)
        page = (run / "report.html").read_text("utf-8")
        assert training.poll() is None
    finally:
        training.send_signal(signal.SIGTERM)
        training.communicate(timeout=120)
    assert "there is no checkpoint yet" in page
    assert "without an end (it runs or died)" in page
    assert status(["report", str(run), "--limit", "0"]) == 0
    assert "is not evaluated" in (run / "report.html").read_text("utf-8")
    assert read_sessions(run)[0]["ended"] is not None
