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
from processes import MARK, children, descendants, kill_marked, marked, wait_until_gone

from bytelm.pipelines.shards import ShardSet

STEPS = 60
CHECKPOINT_EVERY = 10
END_SECONDS = 60.0
LONG = [pytest.mark.long, pytest.mark.timeout(1200)]


def data_workers(pid: int) -> list[int]:
    """The data workers below a process, which PyTorch names."""
    found: list[int] = []
    for child in sorted(descendants(pid)):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text() == "pt_data_worker\n":
                found.append(child)
    return found


def ranks(pid: int) -> list[int]:
    """The ranks of a command."""
    return sorted(children(pid))


def launchers(pid: int) -> list[int]:
    """The command itself, which starts the ranks."""
    return [pid]


WORKER = (data_workers, "bytelm train: DataLoader worker")
RANK = (ranks, "was ended by SIGKILL")
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
    """The kill comes after a random step that has a checkpoint before it."""
    sizes = {"steps": STEPS, "global_batch": 2, "checkpoint_every": CHECKPOINT_EVERY}
    config = write_config(tmp_path / "run.yaml", mixed_set, **sizes)
    options = ("--processes", processes, "--set", "data.workers=2")
    bytelm("train", config, "--out", tmp_path / "whole", *options)
    expected = [line["loss"] for line in metrics(tmp_path / "whole")]
    assert len(expected) == STEPS

    for kill in range(kills):
        rng = random.Random(kill)
        run, mark = tmp_path / f"run-{kill}", f"{tmp_path}-{kill}"
        moment = rng.randint(CHECKPOINT_EVERY, STEPS - CHECKPOINT_EVERY)
        status, said = kill_at(moment, victims, rng, mark, run, "train", config, *options)
        wait_until_gone(marked(mark), END_SECONDS)
        if status:
            assert message in said
            assert len(metrics(run)) < STEPS
            bytelm("train", config, "--out", run, *options, "--resume")
        assert [line["loss"] for line in metrics(run)] == expected


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
        kill_marked(mark)
        raise
