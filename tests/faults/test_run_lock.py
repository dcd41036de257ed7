"""Two trainings into one folder: one is refused, the other loses no metrics and no checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.commands import bytelm, command, environment, metrics, write_config
from helpers.processes import MARK, kill_marked

from bytelm.pipelines.checkpoints import run_lock
from bytelm.pipelines.shards.reader import ShardSet

STEPS = 120
END_SECONDS = 120.0
LONG = pytest.mark.long
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `bytelm train`, whose processes are all killed after the test."""

    def train(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command("train", *arguments),
            env={**environment(), MARK: str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    yield train
    kill_marked(str(tmp_path))


@pytest.fixture
def config(mixed_set: ShardSet, tmp_path: Path) -> Path:
    sizes = {"steps": STEPS, "global_batch": 2, "checkpoint_every": 20, "keep_last": 99}
    return write_config(tmp_path / "run.yaml", mixed_set, **sizes)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_step(run: Path, step: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= step


def assert_whole(run: Path) -> None:
    """Every step has its line, every checkpoint is there, and the lock is gone."""
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["latest", *(f"step-{step:08d}" for step in range(20, STEPS + 1, 20))]
    assert not (run / run_lock.LOCK_FILE).exists()
    bytelm("export", run, "--out", run.parent / "model")


@pytest.mark.parametrize(
    ("delay", "processes"),
    [
        (0.0, 1),
        pytest.param(0.0, 2, marks=LONG),
        pytest.param(1.0, 1, marks=LONG),
        pytest.param(5.0, 1, marks=LONG),
    ],
)
def test_of_two_fresh_starts_one_is_refused_and_the_other_is_whole(
    config: Path, tmp_path: Path, start: Start, delay: float, processes: int
) -> None:
    run = tmp_path / "run"
    options = (config, "--out", run, "--processes", processes)
    first = start(*options)
    time.sleep(delay)
    trainings = [first, start(*options)]
    outputs = [training.communicate(timeout=END_SECONDS)[0] for training in trainings]
    statuses = [training.returncode for training in trainings]
    assert sorted(statuses) == [0, 2], outputs
    winner = trainings[statuses.index(0)]
    refusal = outputs[statuses.index(2)]
    if "is not empty" not in refusal:  # it came after the first had ended
        assert f"{run} is being trained by " in refusal
        assert refusal.endswith(": wait, or choose another --out\n")
        assert f"process {winner.pid} on " in refusal or "another process" in refusal
    assert_whole(run)


@pytest.mark.parametrize("delay", [0.0, pytest.param(1.0, marks=LONG), pytest.param(5, marks=LONG)])
def test_a_run_is_not_resumed_while_it_is_trained(
    config: Path, tmp_path: Path, start: Start, delay: float
) -> None:
    """The first is stopped for as long as the second takes, so that it does not end before it."""
    run = tmp_path / "run"
    first = start(config, "--out", run)
    wait_for(lambda: has_step(run, 20))
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(delay)
    second = start(config, "--out", run, "--resume")
    refusal = second.communicate(timeout=END_SECONDS)[0]
    os.kill(first.pid, signal.SIGCONT)
    first.communicate(timeout=END_SECONDS)
    assert (first.returncode, second.returncode) == (0, 2)
    assert f"{run} is being trained by process {first.pid} on " in refusal
    assert_whole(run)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=LONG)])
def test_a_lock_left_by_a_killed_process_does_not_block(
    config: Path, tmp_path: Path, start: Start, processes: int
) -> None:
    """Data workers and ranks outlive the killed process for a moment; a fresh start follows at
    once, while they end."""
    run = tmp_path / "run"
    options = (config, "--out", run, "--processes", processes, "--set", "data.workers=2")
    first = start(*options)
    wait_for((run / "checkpoints" / "latest").exists)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert (run / run_lock.LOCK_FILE).exists()
    second = start(*options, "--resume")
    output = second.communicate(timeout=END_SECONDS)[0]
    assert second.returncode == 0, output
    assert_whole(run)


def test_a_refused_start_leaves_no_folder(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    bytelm("train", config, "--out", run, "--resume", status=2)
    assert not run.exists()
    error = bytelm("train", config, "--out", config, status=2).stderr
    assert error == f"bytelm train: {config} cannot be a run's folder: File exists\n"


def test_the_lock_names_its_holder_and_is_taken_once(tmp_path: Path) -> None:
    with (
        run_lock.locked(tmp_path / "run"),
        pytest.raises(ValueError, match=f"process {os.getpid()} on .* since 20"),
        run_lock.locked(tmp_path / "run"),
    ):
        raise AssertionError("locked twice")
    with run_lock.locked(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").exists()
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(run_lock.locked(tmp_path / "run")) is None
        monkeypatch.undo()
    assert "has no locks (Operation not supported)" in capsys.readouterr().err


def test_ranks_that_torchrun_started_again_wait_for_the_lock_of_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setenv(run_lock.TORCHRUN_ID, "job")
    earlier = contextlib.ExitStack()
    earlier.enter_context(run_lock.locked(run))
    monkeypatch.setenv(run_lock.TORCHRUN_ID, "another job")
    with pytest.raises(ValueError, match="is being trained by"), run_lock.locked(run):
        raise AssertionError("locked twice")
    monkeypatch.setenv(run_lock.TORCHRUN_ID, "job")
    threading.Timer(0.2, earlier.close).start()
    with run_lock.locked(run):
        assert (run / run_lock.LOCK_FILE).exists()
