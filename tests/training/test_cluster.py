"""The scripts for clusters, on simulated nodes on this machine that connect as real ones do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import bytelm, environment, metrics, write_config
from helpers.processes import MARK, kill_marked, marked, wait_until_gone

from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.shards.reader import ShardSet

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
STEPS = 30
END_SECONDS = 60.0
SRUN = """#!/usr/bin/env bash
# A stand-in for Slurm's srun: two tasks on this machine, to which it forwards SIGTERM.
shift
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" & tasks+=" $!"; done
trap 'kill -TERM $tasks' TERM
status=0
for task in $tasks; do
    while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
    [ $code = 0 ] || status=$code
done
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[list[str]]:
    """A mark for the processes of each of two nodes, all of which are killed after the test."""
    chosen = [f"{tmp_path}-{node}" for node in range(2)]
    yield chosen
    for mark in chosen:
        kill_marked(mark)


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment with `bytelm`, `torchrun` and Slurm's commands on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, module in (
        ("bytelm", "bytelm"),
        ("torchrun", "torch.distributed.run"),
    ):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
    (folder / "srun").write_text(SRUN)
    (folder / "scontrol").write_text(SCONTROL)
    for path in folder.iterdir():
        path.chmod(0o755)
    return {**environment(), "PATH": f"{folder}:{os.environ['PATH']}"}


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    path = run / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        assert process.poll() is None
        time.sleep(0.01)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run)]


def test_a_run_on_two_nodes_resumes_after_one_of_them_stops(
    mixed_set: ShardSet, tmp_path: Path, marks: list[str], tools: dict[str, str]
) -> None:
    """torchrun starts one process on each of two nodes. All processes of the second node are
    killed, and the first ends by itself. The same command then starts both again."""
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=STEPS, global_batch=2, checkpoint_every=5
    )
    run, whole = tmp_path / "run", tmp_path / "whole"
    bytelm("train", config, "--out", whole, "--processes", 2)

    def start() -> list[subprocess.Popen[bytes]]:
        meeting = {
            "HEAD": "127.0.0.1",
            "PORT": str(free_port()),
            "NODES": "2",
            "PROCESSES": "1",
            "PET_LOCAL_ADDR": "127.0.0.1",  # torchrun takes its options from here too
        }
        return [
            subprocess.Popen(
                [str(CLUSTER / "torchrun.sh"), str(config), str(run)],
                env={**tools, **meeting, MARK: mark},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for mark in marks
        ]

    first, second = start()
    wait_for_step(run, 12, first)
    kill_marked(marks[1])
    assert second.wait(END_SECONDS) < 0
    assert first.wait(END_SECONDS) == 1
    wait_until_gone(marked(marks[0]), END_SECONDS)
    assert len(losses(run)) < STEPS

    assert [node.wait(2 * END_SECONDS) for node in start()] == [0, 0]
    assert losses(run) == losses(whole)


@pytest.mark.long
def test_a_slurm_job_saves_before_its_time_is_up_and_is_requeued(
    mixed_set: ShardSet, tmp_path: Path, marks: list[str], tools: dict[str, str]
) -> None:
    """The script is told to stop, then started again. Slurm's commands are stand-ins."""
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=STEPS, global_batch=2, checkpoint_every=999
    )
    run, whole, requeued = tmp_path / "run", tmp_path / "whole", tmp_path / "requeued"
    bytelm("train", config, "--out", whole, "--processes", 2)
    job = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_JOB_NODELIST": "node",
        "REQUEUED": str(requeued),
        MARK: marks[0],
    }

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(CLUSTER / "slurm.sbatch"), str(config), str(run)],
            env={**tools, **job},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    script = start()
    wait_for_step(run, 3, script)
    script.send_signal(signal.SIGTERM)
    assert script.wait(END_SECONDS) == 0
    wait_until_gone(marked(marks[0]), END_SECONDS)
    done = len(losses(run))
    assert (run / "checkpoints" / "latest").read_text() == f"step-{done:08d}"
    assert requeued.read_text() == f"requeue {job['SLURM_JOB_ID']}\n"

    assert start().wait(2 * END_SECONDS) == 0
    assert losses(run) == losses(whole)
    assert requeued.read_text().count("\n") == 1, "a completed run is not requeued"
