"""The scripts for clusters, on simulated nodes on this machine that connect as real ones do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.commands import bytelm, command, environment, metrics, write_config
from helpers.processes import MARK, kill_marked, marked, wait_until_gone
from helpers.source_files import hashes, small_source

from bytelm.pipelines.checkpoints.run_folder import CHECKPOINTS_FOLDER, LATEST_FILE
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.sessions import read_sessions

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
STEPS = 30
SLOW_STEPS = 120
"""Steps of 16 rows, which take long enough for a node to return meanwhile."""
END_SECONDS = 60.0
StartNode = Callable[..., subprocess.Popen[bytes]]
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


def wait_for_checkpoint(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run has a whole checkpoint, which is written over some steps."""
    while not (run / CHECKPOINTS_FOLDER / LATEST_FILE).exists():
        assert process.poll() is None
        time.sleep(0.01)


def wait_for_sessions(run: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    while len(read_sessions(run)) < count:
        assert process.poll() is None
        time.sleep(0.01)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run)]


def rows(run: Path) -> list[tuple[int, int]]:
    """The position of the data behind each step, from which the next global batch follows."""
    return [(line["epoch"], line["row"]) for line in metrics(run)]


@pytest.fixture
def start_node(tmp_path: Path, marks: list[str], tools: dict[str, str]) -> StartNode:
    """Starts torchrun.sh on a node, whose torchrun gives a lost node up after some ten seconds."""
    meeting = {
        "HEAD": "127.0.0.1",
        "PORT": str(free_port()),
        "PROCESSES": "1",
        "PET_LOCAL_ADDR": "127.0.0.1",  # torchrun takes its options from here too
    }
    patience = "last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=4"

    def start(number: int, nodes: str, *arguments: object) -> subprocess.Popen[bytes]:
        # Both nodes have the address of HEAD here, and the second one must not become it.
        node = {"NODES": nodes, "PET_RDZV_CONF": f"{patience},is_host={number == 0}"}
        with open(tmp_path / f"node-{number}.log", "ab") as log:
            return subprocess.Popen(
                [str(CLUSTER / "torchrun.sh"), *map(str, arguments)],
                env={**tools, **meeting, **node, MARK: marks[number]},
                stdout=log,
                stderr=log,
            )

    return start


def sessions(run: Path) -> list[int]:
    """The number of ranks of each session of a run."""
    return [session["ranks"] for session in read_sessions(run)]


@pytest.mark.long
def test_a_run_on_two_nodes_goes_on_when_one_of_them_was_killed_and_comes_back(
    mixed_set: ShardSet, tmp_path: Path, marks: list[str], start_node: StartNode
) -> None:
    """torchrun starts one process on each of two nodes. All processes of the second node are
    killed, and only this node is started again."""
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=STEPS, global_batch=2, checkpoint_every=5
    )
    run, whole = tmp_path / "run", tmp_path / "whole"
    bytelm("train", config, "--out", whole, "--processes", 2)

    first, second = (start_node(number, "2", config, run) for number in range(2))
    wait_for_step(run, 12, first)
    kill_marked(marks[1])
    assert second.wait(END_SECONDS) < 0
    again = start_node(1, "2", config, run)
    assert [first.wait(2 * END_SECONDS), again.wait(END_SECONDS)] == [0, 0]
    assert losses(run) == losses(whole)
    assert sessions(run) == [2, 2]


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "optimizer"), [(1, "muon"), (3, "muon"), (2, "adamw"), (0, "muon")]
)
def test_a_run_goes_on_with_the_node_that_is_left_and_takes_the_other_one_in_again(
    mixed_set: ShardSet,
    tmp_path: Path,
    marks: list[str],
    start_node: StartNode,
    stage: int,
    optimizer: str,
) -> None:
    """The second node is killed, stays away for ten steps, and returns. The first one takes steps
    until it has, so that the run has no end, and all are asked to stop."""
    options = ("--set", f"train.deepspeed=zero{stage}", "--set", f"optimizer.name={optimizer}")
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=10**6, global_batch=16, checkpoint_every=20
    )
    run, whole = tmp_path / "run", tmp_path / "whole"
    first, second = (start_node(number, "1:2", config, run, *options) for number in range(2))
    wait_for_checkpoint(run, first)
    kill_marked(marks[1])
    assert second.wait(END_SECONDS) < 0
    wait_for_sessions(run, 2, first)
    wait_for_step(run, len(losses(run)) + 10, first)
    again = start_node(1, "1:2", config, run, *options)
    wait_for_sessions(run, 3, first)
    wait_for_step(run, len(losses(run)) + 10, first)
    for node in (first, again):
        node.terminate()
        node.wait(END_SECONDS)
    wait_until_gone(marked(marks[0]) | marked(marks[1]), END_SECONDS)
    ranks, first_steps, last_steps = zip(
        *((s["ranks"], s["first_step"], s["last_step"]) for s in read_sessions(run)), strict=True
    )
    assert ranks == (2, 1, 2)
    assert first_steps == (0, 20, last_steps[1]), "steps were lost when the node returned"
    done = losses(run)
    assert len(done) == last_steps[2]

    undisturbed = subprocess.Popen(
        command("train", config, "--out", whole, "--processes", 2, *options),
        stdout=subprocess.DEVNULL,
        env={**environment(), MARK: marks[0]},
    )
    wait_for_step(whole, len(done), undisturbed)
    undisturbed.terminate()
    assert undisturbed.wait(END_SECONDS) == 0
    expected = losses(whole)[: len(done)]
    assert rows(run) == rows(whole)[: len(done)]
    assert done[:20] == expected[:20]
    assert done[20:25] == pytest.approx(expected[20:25], abs=1e-4)
    assert done == pytest.approx(expected, abs=0.05)  # the rounding of 2 and 1 ranks grows


@pytest.mark.long
def test_a_run_ends_on_the_node_that_is_left(
    mixed_set: ShardSet, tmp_path: Path, marks: list[str], start_node: StartNode
) -> None:
    """The second node stays away. torchrun's restart resumes without --resume."""
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=STEPS, global_batch=2, checkpoint_every=5
    )
    run, whole = tmp_path / "run", tmp_path / "whole"
    bytelm("train", config, "--out", whole, "--processes", 2)
    first, second = (start_node(number, "1:2", config, run) for number in range(2))
    wait_for_step(run, 12, first)
    kill_marked(marks[1])
    assert second.wait(END_SECONDS) < 0
    assert first.wait(2 * END_SECONDS) == 0
    assert sessions(run) == [2, 1]
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.long
def test_a_node_that_is_asked_to_stop_leaves_and_the_others_go_on(
    mixed_set: ShardSet, tmp_path: Path, start_node: StartNode
) -> None:
    """The torchrun of the second node receives SIGTERM, as before a preemption: both save, and
    the first node resumes alone, without a lost step."""
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=SLOW_STEPS, global_batch=16, checkpoint_every=9999
    )
    run = tmp_path / "run"
    first, second = (start_node(number, "1:2", config, run) for number in range(2))
    wait_for_step(run, 12, first)
    second.terminate()
    second.wait(END_SECONDS)
    assert first.wait(2 * END_SECONDS) == 0
    ranks, first_steps = zip(
        *((s["ranks"], s["first_step"]) for s in read_sessions(run)), strict=True
    )
    assert ranks == (2, 1)
    assert first_steps[1] >= 12
    assert [line["step"] for line in metrics(run)] == list(range(1, SLOW_STEPS + 1))


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


@pytest.mark.long
def test_tasks_of_slurm_arrays_prepare_the_set_of_one_machine(
    tmp_path: Path, tools: dict[str, str]
) -> None:
    """Slurm's variables are set as its arrays set them; the tasks run at the same time."""

    def run_array(*arguments: str) -> None:
        tasks = [
            subprocess.Popen(
                [str(CLUSTER / "slurm-prepare.sbatch"), *arguments],
                env={**tools, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "3"},
            )
            for task in range(3)
        ]
        assert [task.wait(END_SECONDS) for task in tasks] == [0, 0, 0]

    source = small_source(tmp_path / "source")
    one, many = tmp_path / "one", tmp_path / "many"
    bytelm("prepare", source, "--out", one, "--workers", 1)
    run_array(str(source), str(many), "--workers", "1")
    run_array("--merge", str(many))
    assert list(many.glob("*.tar")), "the second array writes the shards"
    bytelm("merge", many)
    assert hashes(many) == hashes(one)
