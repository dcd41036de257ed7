"""Losses and gradients that are not finite are named and skipped on every rank; loss spikes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from helpers.commands import bytelm, environment, metrics, write_config
from helpers.sets import SetMaker, text

from bytelm.pipelines.checkpoints.train_state import AVERAGED_STEPS, LossMonitor
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.shards.reader import ShardSet

LONG = pytest.mark.long
POISONED = Path(__file__).parents[1] / "helpers" / "poisoned.py"


def poisoned(where: str, ranks: int, *arguments: object) -> None:
    """Train with the poisoned model on a number of ranks; each has to end with status 0."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(POISONED), where, "train", *map(str, arguments)],
            env={
                **environment(),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        stderr = process.communicate()[1]
        assert process.returncode == 0, stderr


@pytest.mark.parametrize(
    ("stage", "ranks", "where"),
    [
        (0, 1, "BACKWARD"),
        (1, 2, "FORWARD"),
        pytest.param(0, 1, "FORWARD", marks=LONG),
        pytest.param(0, 2, "FORWARD", marks=LONG),
        pytest.param(1, 2, "BACKWARD", marks=LONG),
        pytest.param(2, 2, "FORWARD", marks=LONG),
        pytest.param(3, 2, "FORWARD", marks=LONG),
        pytest.param(3, 2, "BACKWARD", marks=LONG),
    ],
)
def test_a_bad_document_is_named_and_its_update_skipped(
    make_set: SetMaker, tmp_path: Path, stage: int, ranks: int, where: str
) -> None:
    """One document of twelve is poisoned; each is a row, and each of six steps has two rows."""
    documents = [[text(bytes([65 + i]) * 200)] for i in range(12)]
    documents[5] = [text(b"\1" * 200)]
    config = write_config(
        tmp_path / "run.yaml",
        make_set(documents),
        steps=6,
        global_batch=2,
        deepspeed=f"zero{stage}",
        precision="bf16" if stage == 2 else "fp32",
    )
    run = tmp_path / "run"
    poisoned(where, ranks, config, "--out", run)
    (skipped,) = metrics(run, "skipped")
    keys = [key for line in skipped["documents"] for key in line.split(": ")[1].split()]
    assert "train-5" in keys
    assert len(keys) == (1 if where == "FORWARD" else 2)
    lines = metrics(run)
    assert [m["skipped_steps"] for m in lines] == [int(m["step"] >= skipped["step"]) for m in lines]
    for line in lines:
        is_skipped = line["step"] == skipped["step"]
        assert (line["grad_norm"] is None) == is_skipped
        assert (line["loss"] is None) == (is_skipped and where == "FORWARD")
    name = (run / "checkpoints" / "latest").read_text()
    weights = safetensors.torch.load_file(
        run / "checkpoints" / name / "model" / "model.safetensors"
    )
    assert all(w.isfinite().all() for w in weights.values())
    state = json.loads((run / "checkpoints" / name / "state.json").read_text())
    assert state["watch"]["skipped"] == 1
    assert state["watch"]["skipped_in_a_row"] == 0


@pytest.mark.parametrize(
    ("stage", "processes"),
    [(1, 2), pytest.param(0, 1, marks=LONG), pytest.param(3, 2, marks=LONG)],
)
def test_three_skipped_steps_in_a_row_end_the_run_with_status_3(
    mixed_set: ShardSet, tmp_path: Path, stage: int, processes: int
) -> None:
    """The learning rate is so large that the loss overflows, while the weights stay finite."""
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=9, global_batch=2)
    run = tmp_path / "run"
    options = ("--processes", processes, "--set", f"train.deepspeed=zero{stage}")
    huge = ("--set", "optimizer.lr=1e30", "--set", "optimizer.warmup_steps=0")
    stderr = bytelm("train", config, "--out", run, *options, *huge, status=3).stderr
    steps = [line["step"] for line in metrics(run, "skipped")]
    assert len(steps) == 3
    assert f"of steps {steps[0]} to {steps[-1]} were not finite" in stderr
    assert (run / "checkpoints" / "latest").read_text() == f"step-{steps[-1]:08d}"
    weights = run / "checkpoints" / f"step-{steps[-1]:08d}" / "model" / "model.safetensors"
    assert all(w.isfinite().all() for w in safetensors.torch.load_file(weights).values())


def test_a_loss_that_stands_out_is_a_spike() -> None:
    loss_monitor = LossMonitor()
    for step in range(2 * AVERAGED_STEPS):
        loss = 3 - step / 100 + 0.1 * math.sin(step)
        assert not loss_monitor.is_spike(loss)
        loss_monitor = loss_monitor.after(loss, True)
    assert loss_monitor.is_spike(loss_monitor.mean + 2)
    assert not loss_monitor.is_spike(loss_monitor.mean - 2)
    assert not loss_monitor.is_spike(math.nan)
    assert not LossMonitor().is_spike(100.0), "no loss has been counted yet"
    assert loss_monitor.after(math.nan, False).mean == loss_monitor.mean
