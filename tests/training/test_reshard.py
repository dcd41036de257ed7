"""A run continues with other ranks and at another ZeRO stage as if nothing had changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.commands import bytelm, metrics, write_config

from bytelm.pipelines.config import plural
from bytelm.pipelines.shards.reader import ShardSet

LONG = pytest.mark.long
STEPS = 50
Part = tuple[int, int]
"""Number of ranks, and ZeRO stage, of a part of a run."""


@pytest.mark.parametrize(
    ("optimizer", "parts"),
    [
        ("muon", [(2, 1), (1, 1), (2, 3)]),
        pytest.param("muon", [(2, 1), (1, 1), (2, 1)], marks=LONG),
        pytest.param("muon", [(2, 3), (1, 3), (2, 3)], marks=LONG),
        pytest.param("muon", [(1, 3), (2, 0), (1, 2), (2, 1)], marks=LONG),
        pytest.param("adamw", [(2, 1), (1, 1), (2, 1)], marks=LONG),
        pytest.param("adamw", [(1, 1), (1, 3)], marks=LONG),
        pytest.param("adamw", [(2, 2), (1, 0), (2, 3)], marks=LONG),
    ],
)
def test_a_run_goes_on_with_other_ranks_and_stages(
    mixed_set: ShardSet, tmp_path: Path, optimizer: str, parts: list[Part]
) -> None:
    """Each part resumes from a checkpoint of the previous one. The losses are those of the unbroken
    run, which has the ranks and the stage of the first part."""
    config = write_config(
        tmp_path / "run.yaml",
        mixed_set,
        steps=STEPS,
        global_batch=2,
        checkpoint_every=STEPS // 5,
        keep_last=5,
    )
    run = tmp_path / "run"
    expected: list[float] = []
    for number, (ranks, stage) in enumerate(parts):
        options = ("--processes", ranks, "--set", f"train.deepspeed=zero{stage}")
        resume = ("--resume",) if number else ()
        chosen = ("--set", f"optimizer.name={optimizer}")
        stdout = bytelm("train", config, "--out", run, *options, *chosen, *resume).stdout
        losses = [line["loss"] for line in metrics(run)]
        expected = expected or losses
        assert len(losses) == STEPS
        assert losses == pytest.approx(expected, abs=1e-5)
        if number:
            processes, zero_stage = parts[number - 1]
            message = f"written by {plural(processes, 'process', 'processes')} at ZeRO {zero_stage}"
            assert (message in stdout) == (parts[number] != parts[number - 1])
        for folder in sorted((run / "checkpoints").glob("step-*"))[number + 1 :]:
            shutil.rmtree(folder)
