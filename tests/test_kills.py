"""kill -9 of a data worker, a rank or a launcher at random moments: the run ends with a message,
leaves no process behind, and goes on from its checkpoint as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import bytelm, command, environment, metrics, write_config
from processes import children, descendants, name, wait_until_gone

from bytelm.pipelines.shards import ShardSet

MARK = "BYTELM_TEST_RUN"
"""Ranks have sessions of their own, so what belongs to a run is told by a variable."""
STEPS = 60
CHECKPOINT_EVERY = 10
LAST_KILL = 30
"""Far from the end, so that a busy machine kills before it is reached."""
END_SECONDS = 60.0
LONG = [pytest.mark.long, pytest.mark.timeout(1200)]


def marked(mark: str) -> set[int]:
    """All processes of this machine with a mark."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or it has just ended
            if f"{MARK}={mark}\0".encode() in path.read_bytes():
                found.add(int(path.parent.name))
    return found


def data_workers(pid: int) -> list[int]:
    """The data workers of a run, which PyTorch names."""
    return [child for child in sorted(descendants(pid)) if name(child) == "pt_data_worker"]


def launchers(pid: int) -> list[int]:
    """The command itself and torchrun, which start the ranks."""
    return [pid, *(child for child in sorted(children(pid)) if name(child) == "pt_elastic")]


def ranks(pid: int) -> list[int]:
    """The ranks of a run: what torchrun started."""
    return [rank for torchrun in launchers(pid)[1:] for rank in sorted(children(torchrun))]


WORKER = (data_workers, "bytelm train: DataLoader worker")
RANK = (ranks, "(SIGKILL)")
LAUNCHER = (launchers, "the command that launched this rank has ended")


def _has_lines(path: Path, count: int) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") >= count


@pytest.mark.parametrize(
    ("victims", "message", "processes", "kills"),
    [
        (*WORKER, 1, 2),
        (*RANK, 2, 2),
        (*LAUNCHER, 2, 1),
        pytest.param(*WORKER, 1, 10, marks=LONG),
        pytest.param(*WORKER, 2, 4, marks=LONG),
        pytest.param(*RANK, 2, 10, marks=LONG),
        pytest.param(*LAUNCHER, 2, 4, marks=LONG),
    ],
)
def test_a_killed_process_ends_the_run_and_resuming_is_exact(
    mixed_set: ShardSet,
    tmp_path: Path,
    victims: Callable[[int], list[int]],
    message: str,
    processes: int,
    kills: int,
) -> None:
    """The kill comes after a random step that has a checkpoint before it. A run that goes on all
    the same has to be right too."""
    sizes = {"steps": STEPS, "global_batch": 2, "checkpoint_every": CHECKPOINT_EVERY}
    config = write_config(tmp_path / "run.yaml", mixed_set, **sizes)
    options = ("--processes", processes, "--set", "data.workers=2")
    bytelm("train", config, "--out", tmp_path / "whole", *options)
    expected = [line["loss"] for line in metrics(tmp_path / "whole")]
    assert len(expected) == STEPS

    ended = 0
    for kill in range(kills):
        rng = random.Random(kill)
        run, mark = tmp_path / f"run-{kill}", f"{tmp_path}-{kill}"
        moment = rng.randint(CHECKPOINT_EVERY, LAST_KILL)
        status, said = kill_at(moment, victims, rng, mark, run, "train", config, *options)
        wait_until_gone(marked(mark), END_SECONDS)
        if len(metrics(run)) < STEPS:
            ended += 1
            assert status
            assert message in said
            bytelm("train", config, "--out", run, *options, "--resume")
        assert [line["loss"] for line in metrics(run)] == expected
    assert ended


def kill_at(
    step: int,
    victims: Callable[[int], list[int]],
    rng: random.Random,
    mark: str,
    run: Path,
    *arguments: object,
) -> tuple[int, str]:
    """Start a run and kill a victim of it after a step; the command has to end in END_SECONDS
    from there. Returns its exit status, 0 where it went on, and what it said on stderr."""
    process = subprocess.Popen(
        command(*arguments, "--out", run),
        env={**environment(), MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log = run / "metrics.jsonl"
        while process.poll() is None and not _has_lines(log, step):
            time.sleep(0.005)
        chosen = rng.choice(victims(process.pid))
        assert {process.pid, chosen} <= marked(mark)
        os.kill(chosen, signal.SIGKILL)
        _, said = process.communicate(timeout=END_SECONDS)
        return process.returncode, said
    except BaseException:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise
