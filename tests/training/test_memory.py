"""The memory that `bytelm plan` estimates is what a run then uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import command, environment, write_config
from helpers.sets import SetMaker, image

from bytelm.pipelines.config import load_config
from bytelm.pipelines.training.memory import memory_by_zero_stage

PEAK = """
import json, resource, subprocess, sys
subprocess.run(json.loads(sys.argv[1]), check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""
"""Runs a command and prints the peak resident bytes of its largest process."""


@pytest.mark.parametrize(
    "preset",
    [
        "tiny",
        pytest.param("modern-hour", marks=pytest.mark.long),
        pytest.param("small", marks=pytest.mark.long),
    ],
)
def test_a_run_uses_the_memory_that_the_plan_says(
    preset: str, make_set: SetMaker, tmp_path: Path
) -> None:
    shard_set = make_set([[image(100, 60, seed=i)] for i in range(3)])
    sizes = {"steps": 3, "precision": "bf16", "eval_rows": 1}
    path = write_config(tmp_path / "run.yaml", shard_set, preset, **sizes)
    estimate = memory_by_zero_stage(load_config(path, []), ranks=1)[1].total
    run = json.dumps(command("train", path, "--out", tmp_path / "run"))
    peak = subprocess.check_output([sys.executable, "-c", PEAK, run], env=environment())
    assert estimate == pytest.approx(int(peak), rel=0.2)
