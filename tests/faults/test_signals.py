"""Signals to the command or to a rank: the step is completed, all ranks save, and none is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.commands import bytelm, command, environment, metrics, write_config
from helpers.processes import (
    MARK,
    children,
    descendants,
    hear_interrupts,
    kill_marked,
    marked,
    wait_until_gone,
)
from helpers.sets import SetMaker, text

from bytelm.pipelines.shards.reader import ShardSet

STEPS = 60
END_SECONDS = 60.0


class Running:
    """A run in subprocesses."""

    def __init__(self, mark: str, *arguments: object):
        self.mark = mark
        self.process = subprocess.Popen(
            command("train", *arguments),
            env={**environment(), MARK: mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hear_interrupts,
        )

    def wait_for(self, happened: Callable[[], bool]) -> None:
        while not happened():
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.005)

    def end(self) -> tuple[int, str]:
        """Wait until the run and all its processes end; returns exit status and output."""
        output = self.process.communicate(timeout=END_SECONDS)[0]
        wait_until_gone(marked(self.mark), END_SECONDS)
        return self.process.returncode, output


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts runs, whose processes are all killed after the test."""
    yield lambda *arguments: Running(str(tmp_path), *arguments)
    kill_marked(str(tmp_path))


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def the_command(process: subprocess.Popen[str]) -> int:
    return process.pid


def a_rank(process: subprocess.Popen[str]) -> int:
    return max(children(process.pid))


LONG = pytest.mark.long
Victim = Callable[[subprocess.Popen[str]], int]


@pytest.mark.parametrize(
    ("number", "victim", "processes"),
    [
        (signal.SIGTERM, the_command, 2),
        pytest.param(signal.SIGTERM, the_command, 1, marks=LONG),
        pytest.param(signal.SIGTERM, a_rank, 2, marks=LONG),
        pytest.param(signal.SIGINT, the_command, 1, marks=LONG),
        pytest.param(signal.SIGINT, the_command, 2, marks=LONG),
        pytest.param(signal.SIGINT, a_rank, 2, marks=LONG),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_and_resumes_exactly(
    mixed_set: ShardSet,
    tmp_path: Path,
    start: Callable[..., Running],
    number: signal.Signals,
    victim: Victim,
    processes: int,
) -> None:
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=STEPS, global_batch=2, checkpoint_every=999
    )
    run, options = tmp_path / "run", ("--processes", processes)
    running = start(config, "--out", run, *options)
    running.wait_for(lambda: steps_done(run) >= 3)
    os.kill(victim(running.process), number)
    status, output = running.end()
    assert status == 0
    done = steps_done(run)
    assert f"asked to stop: the run ends after step {done}, continue with --resume" in output
    assert (run / "checkpoints" / "latest").read_text() == f"step-{done:08d}"
    bytelm("train", config, "--out", run, *options, "--resume")
    bytelm("train", config, "--out", tmp_path / "whole", *options)
    losses = [[line["loss"] for line in metrics(r)] for r in (run, tmp_path / "whole")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("victim", "processes"), [(the_command, 2), pytest.param(a_rank, 2, marks=LONG)]
)
def test_usr1_saves_and_the_run_continues(
    mixed_set: ShardSet,
    tmp_path: Path,
    start: Callable[..., Running],
    victim: Victim,
    processes: int,
) -> None:
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=STEPS, global_batch=2, checkpoint_every=999
    )
    run = tmp_path / "run"
    running = start(config, "--out", run, "--processes", processes)
    running.wait_for(lambda: steps_done(run) >= 3)
    os.kill(victim(running.process), signal.SIGUSR1)
    assert running.end()[0] == 0
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    first, last = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    assert "step-00000003" <= first < last == f"step-{STEPS:08d}"


@pytest.mark.parametrize(
    ("number", "ended", "line"),
    [(signal.SIGTERM, 143, "SIGTERM"), pytest.param(signal.SIGINT, 130, "SIGINT", marks=LONG)],
)
def test_a_signal_before_the_first_step_ends_at_once(
    mixed_set: ShardSet,
    tmp_path: Path,
    start: Callable[..., Running],
    number: signal.Signals,
    ended: int,
    line: str,
) -> None:
    """The ranks are starting, which takes long on a busy machine: there is no step to save."""
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=3, global_batch=2)
    run, options = tmp_path / "run", ("--processes", 2)
    running = start(config, "--out", run, *options)
    running.wait_for(lambda: len(children(running.process.pid)) == 2)
    running.process.send_signal(number)
    status, output = running.end()
    assert status == ended
    assert output == f"bytelm train: ended by {line} before its first step\n"
    assert not (run / "checkpoints").exists()
    bytelm("train", config, "--out", run, *options)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]


def test_a_signal_during_validation_ends_it(
    make_set: SetMaker, tmp_path: Path, start: Callable[..., Running]
) -> None:
    """The validation would take minutes."""
    long = [[text(b"call me " * 4000)] for _ in range(150)]
    shard_set = make_set([[text(b"call me " * 20)]], val=long)
    sizes = {"steps": 2, "global_batch": 2, "eval_every": 1, "eval_rows": 99_999}
    run, config = tmp_path / "run", write_config(tmp_path / "run.yaml", shard_set, **sizes)
    running = start(config, "--out", run, "--processes", 2)
    running.wait_for(lambda: steps_done(run) == 1)
    running.process.send_signal(signal.SIGTERM)
    status, output = running.end()
    assert status == 0
    assert "the run ends after step 1" in output
    assert not metrics(run, "eval")
    assert (run / "checkpoints" / "latest").read_text() == "step-00000001"


@pytest.mark.long
def test_a_rank_that_hangs_ends_the_run(
    mixed_set: ShardSet, tmp_path: Path, start: Callable[..., Running]
) -> None:
    """A rank is stopped, as if its machine were gone; the others wait for `rank_timeout` only."""
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=9999, global_batch=2, rank_timeout=5
    )
    run = tmp_path / "run"
    running = start(config, "--out", run, "--processes", 2)
    running.wait_for(lambda: steps_done(run) >= 3)
    os.kill(a_rank(running.process), signal.SIGSTOP)
    status, output = running.end()
    assert status == 1
    assert "bytelm train: " in output
    assert "Timed out" in output


def test_each_save_request_is_taken_once_and_none_is_lost() -> None:
    """In a subprocess, so that the tests' own signal handlers stay as they are."""
    code = """
import os, signal
from bytelm.pipelines.runtime.signals import SignalListener
listener = SignalListener()
assert not listener.take_save_request()
os.kill(os.getpid(), signal.SIGUSR1)
assert listener.take_save_request() and not listener.take_save_request()
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR1)
assert listener.take_save_request() and not listener.take_save_request()
assert not listener.stop_requested
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def data_workers(pid: int) -> list[int]:
    """The data workers below a process."""
    found = []
    for child in sorted(descendants(pid)):
        with contextlib.suppress(OSError):  # ended meanwhile
            if Path(f"/proc/{child}/comm").read_text() == "pt_data_worker\n":
                found.append(child)
    return found


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=LONG)])
def test_a_run_with_a_stopped_data_worker_ends_when_it_is_asked_to(
    mixed_set: ShardSet, tmp_path: Path, start: Callable[..., Running], processes: int
) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=999_999, global_batch=2)
    run = tmp_path / "run"
    running = start(config, "--out", run, "--processes", processes)
    running.wait_for(lambda: steps_done(run) >= 3)
    worker = data_workers(running.process.pid)[0]
    os.kill(worker, signal.SIGSTOP)
    running.wait_for(lambda: has_stalled(run))
    running.process.send_signal(signal.SIGTERM)
    status, output = running.end()
    assert status == 0
    stopped = rf"worker 0 \(process {worker}\), which is stopped, has not delivered the next batch"
    assert re.search(stopped, output)
    assert f"the run ends after step {steps_done(run)}" in output


def has_stalled(run: Path) -> bool:
    before = steps_done(run)
    time.sleep(2)
    return steps_done(run) == before


NEVER_STARTS = "import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(9999))\n"


@pytest.mark.parametrize("is_asked", [True, pytest.param(False, marks=LONG)])
def test_a_data_worker_that_never_starts_ends_the_run(
    mixed_set: ShardSet,
    tmp_path: Path,
    start: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
    is_asked: bool,
) -> None:
    """A module that Python imports at its start lets every forked process sleep."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NEVER_STARTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=3, rank_timeout=5)
    run = tmp_path / "run"
    running = start(config, "--out", run)
    if is_asked:
        running.wait_for((run / "config.json").exists)  # signals are recorded from then on
        running.process.send_signal(signal.SIGTERM)
    status, output = running.end()
    assert status == (0 if is_asked else 1)
    assert re.search(r"worker 0 \(process \d+\) has not delivered its first batch", output)


def test_a_second_interrupt_ends_a_run_whose_ranks_do_not_answer(
    mixed_set: ShardSet, tmp_path: Path, start: Callable[..., Running]
) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=999_999, global_batch=2)
    run = tmp_path / "run"
    running = start(config, "--out", run, "--processes", 2)
    running.wait_for(lambda: steps_done(run) >= 1)
    for rank in children(running.process.pid):
        os.kill(rank, signal.SIGSTOP)
    running.process.send_signal(signal.SIGINT)
    time.sleep(1)
    running.process.send_signal(signal.SIGINT)
    status, output = running.end()
    assert status == 130
    assert "bytelm train: interrupted twice" in output


def test_a_rank_that_is_stopped_does_not_keep_the_others_from_ending(
    mixed_set: ShardSet, tmp_path: Path, start: Callable[..., Running]
) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=999_999, global_batch=2)
    run = tmp_path / "run"
    running = start(config, "--out", run, "--processes", 2)
    running.wait_for(lambda: steps_done(run) >= 1)
    victim = max(children(running.process.pid))
    os.kill(victim, signal.SIGSTOP)
    running.process.send_signal(signal.SIGTERM)
    status, output = running.end()
    assert status == 143
    assert output.count("bytelm train: SIGTERM: the step is completed and saved first") == 1
    assert "ended by SIGTERM while its ranks waited" in output
    assert f"(process {victim}) is stopped" in output


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_run_that_waits_as_it_starts_hears_signals(
    tmp_path: Path,
    start: Callable[..., Running],
    number: signal.Signals,
    status: int,
    line: str,
) -> None:
    """It reads its config from a pipe that nobody writes. A request to save waits too."""
    os.mkfifo(tmp_path / "run.yaml")
    running = start(tmp_path / "run.yaml", "--out", tmp_path / "run")
    with open(tmp_path / "run.yaml", "w"):  # opens once the command reads
        time.sleep(0.5)
        running.process.send_signal(signal.SIGUSR1)
        running.process.send_signal(number)
        ended, output = running.end()
    assert ended == status
    assert output == f"bytelm train: {line}\n"
    assert not (tmp_path / "run").exists()
