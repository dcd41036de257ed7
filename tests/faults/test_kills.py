"""SIGKILL of a data worker, a rank or the command at random moments, some of them during a save:
the run ends with a message, leaves no process behind, and resumes as if it had not been killed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.commands import bytelm, command, environment, metrics, write_config
from helpers.processes import MARK, children, descendants, kill_marked, marked, wait_until_gone

from bytelm.pipelines.shards.reader import ShardSet

STEPS = 60
CHECKPOINT_EVERY = 10
SIZES = {"steps": STEPS, "global_batch": 2, "checkpoint_every": CHECKPOINT_EVERY}
END_SECONDS = 60.0
LONG = [pytest.mark.long, pytest.mark.timeout(3600)]


def data_workers(pid: int) -> list[int]:
    """The data workers among a process's descendants, by the name that PyTorch gives them."""
    workers: list[int] = []
    for child in sorted(descendants(pid)):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text() == "pt_data_worker\n":
                workers.append(child)
    return workers


class Killed:
    """A run of which a process is killed; all its processes have to end within END_SECONDS."""

    def __init__(
        self,
        config: Path,
        run: Path,
        is_moment: Callable[[], bool],
        choose: Callable[[int], int],
        *options: object,
    ):
        mark = str(run)
        process = subprocess.Popen(
            command("train", config, "--out", run, *options),
            env={**environment(), MARK: mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while process.poll() is None and not is_moment():
                time.sleep(0.001)
            chosen = choose(process.pid)
            assert {process.pid, chosen} <= marked(mark)
            os.kill(chosen, signal.SIGKILL)
            self.stderr = process.communicate(timeout=END_SECONDS)[1]
            wait_until_gone(marked(mark), END_SECONDS)
        finally:
            kill_marked(mark)
        self.status = process.returncode
        """0 if the run was complete."""


def after_step(run: Path, step: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") >= step


def is_saving(run: Path) -> bool:
    return bool(list((run / "checkpoints").glob(".tmp-step-*")))


def outcome(run: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and the final weights of a run."""
    name = (run / "checkpoints" / "latest").read_text()
    weights = run / "checkpoints" / name / "model" / "model.safetensors"
    return [line["loss"] for line in metrics(run)], safetensors.torch.load_file(weights)


def assert_same(run: Path, whole: Path) -> None:
    """Losses and final weights, to the last bit."""
    (losses, weights), (expected, all_weights) = outcome(run), outcome(whole)
    assert len(losses) == STEPS
    assert losses == expected
    assert weights.keys() == all_weights.keys()
    assert all(torch.equal(weights[name], all_weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("processes", "kills"),
    [(1, 1), pytest.param(1, 10, marks=LONG), pytest.param(2, 4, marks=LONG)],
)
def test_a_killed_data_worker_ends_the_run_and_resuming_is_exact(
    mixed_set: ShardSet, tmp_path: Path, processes: int, kills: int
) -> None:
    """The worker is killed after a random step with a checkpoint before it."""
    config = write_config(tmp_path / "run.yaml", mixed_set, **SIZES)
    options = ("--processes", processes, "--set", "data.workers=2")
    whole = tmp_path / "whole"
    bytelm("train", config, "--out", whole, *options)
    for kill in range(kills):
        rng = random.Random(kill)
        run = tmp_path / f"run-{kill}"
        step = rng.randint(CHECKPOINT_EVERY, STEPS // 2)  # its workers may have ended later
        killed = Killed(
            config,
            run,
            lambda run=run, step=step: after_step(run, step),
            lambda pid, rng=rng: rng.choice(data_workers(pid)),
            *options,
        )
        if killed.status:
            assert "DataLoader worker" in killed.stderr  # alone, or as the reason of a failed save
            assert len(metrics(run)) < STEPS
            bytelm("train", config, "--out", run, *options, "--resume")
        assert_same(run, whole)


@pytest.mark.parametrize(
    ("stage", "kills"),
    [(1, 2), pytest.param(1, 10, marks=LONG), pytest.param(3, 10, marks=LONG)],
)
def test_a_killed_rank_or_command_ends_the_run_and_resuming_is_exact(
    mixed_set: ShardSet, tmp_path: Path, stage: int, kills: int
) -> None:
    """Two ranks. Every second kill waits for a random save, and hits a rank or the command, whose
    ranks then end."""
    config = write_config(tmp_path / "run.yaml", mixed_set, **SIZES, deepspeed=f"zero{stage}")
    whole, options = tmp_path / "whole", ("--processes", 2)
    bytelm("train", config, "--out", whole, *options)
    cut = 0
    for kill in range(kills):
        rng = random.Random(10 * stage + kill)
        run = tmp_path / f"run-{kill}"
        step, delay = rng.randint(1, STEPS - CHECKPOINT_EVERY), rng.uniform(0, 0.02)
        is_command = kill % 4 > 1

        def is_moment(run: Path = run, step: int = step, kill: int = kill) -> bool:
            return after_step(run, step) and (kill % 2 == 1 or is_saving(run))

        def choose(
            pid: int, rng: random.Random = rng, delay: float = delay, is_command: bool = is_command
        ) -> int:
            time.sleep(delay)
            return pid if is_command else rng.choice(sorted(children(pid)))

        killed = Killed(config, run, is_moment, choose, *options)
        cut += is_saving(run)
        assert killed.status
        expected = "the command that launched" if is_command else "was ended by SIGKILL"
        assert expected in killed.stderr
        bytelm("train", config, "--out", run, *options, "--resume", "--allow-fresh-start")
        assert_same(run, whole)
        shutil.rmtree(run)
    assert cut >= kills // 4, "some kills interrupt a save"
