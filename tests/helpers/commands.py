"""Run `bytelm` commands as subprocesses, and read what they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bytelm.pipelines.cli import main
from bytelm.pipelines.shards.reader import ShardSet

TINY_MODEL = {
    "stages": [
        {"width": 32, "layers": 2, "heads": 2},
        {"width": 16, "layers": 1, "heads": 2},
    ],
    "patch_sizes": [8],
    "context": 256,
}


def command(*arguments: object) -> list[str]:
    """Return the command line of `bytelm ARGUMENTS`."""
    return [sys.executable, "-m", "bytelm", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return this environment, with one thread for torch and wide lines for tables."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def bytelm(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `bytelm ARGUMENTS` and check its exit status."""
    result = subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=environment()
    )
    assert result.returncode == status, f"{result.args}\n{result.stdout}\n{result.stderr}"
    return result


def torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `bytelm ARGUMENTS` as ranks of torchrun on this machine, and check that they end well."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    line = [sys.executable, *launcher, "-m", "bytelm", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=True, env=environment())


def write_config(
    path: Path, shard_set: ShardSet, model: dict[str, Any] | str = TINY_MODEL, **train: Any
) -> Path:
    """Write a config of a model on one set, in fp32; `train` is merged into its section."""
    values = {
        "model": model,
        "data": {"sets": [{"path": str(shard_set.location)}], "shuffle_window": 2},
        "optimizer": {"lr": 0.003, "warmup_steps": 4},
        "train": {"precision": "fp32", **train},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Return the lines of one kind from a run's metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def status(arguments: Sequence[str]) -> int:
    """Run `bytelm ARGUMENTS` in this process, and return its exit status."""
    try:
        return main.main(arguments)
    except SystemExit as error:
        return int(error.code or 0)
