"""The data side: the real command on the demo's files, how long its steps wait for data, and the
speed of codec features."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from bytelm.pipelines.training.metrics_logger import METRICS
from bytelm.tools.benchmarks.gpu_parts.scale import Scale
from bytelm.tools.benchmarks.measure import Figure
from bytelm.tools.repository import DEMO_FILES, run_bytelm

DATA_WAIT_AIM = 0.05
"""Largest share of a step's time."""
MODALITIES = ("text", "image", "audio")
INTERVALS = 4
"""Intervals of the run that are measured. The first one, with compilation and the start of the
data workers, does not count."""


def run_figures(scale: Scale) -> Iterator[Figure]:
    """Bytes per second of `bytelm train`, and the part of its time that it waits for data."""
    with tempfile.TemporaryDirectory() as folder:
        intervals = _train(scale, Path(folder))[1:]
    speed = mean(interval["bytes_per_second"] for interval in intervals)
    yield Figure(f"run/{scale.run_model}/speed", speed, "bytes/s")
    wait = mean(interval["data_wait"] for interval in intervals)
    yield Figure(f"run/{scale.run_model}/data-wait", wait, "of the time", DATA_WAIT_AIM)


def feature_figures(scale: Scale) -> Iterator[Figure]:
    """The figures of `tools/benchmarks/features.py`, which says what they are."""
    command = [sys.executable, "-m", "bytelm.tools.benchmarks.features"]
    command += ["--megabytes", str(scale.feature_megabytes)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    for values in map(json.loads, result.stdout.splitlines()):
        del values["ratio"]
        name, value, unit = (values.pop(key) for key in ("name", "value", "unit"))
        yield Figure(name, value, unit, values.pop("reference"), values)


def _train(scale: Scale, folder: Path) -> list[dict[str, Any]]:
    """Prepare the demo's files and train on them; returns the records of the intervals."""
    sets = []
    for modality in MODALITIES:
        run_bytelm("prepare", DEMO_FILES / modality, "--out", folder / modality)
        sets.append({"path": str(folder / modality), "weight": 1})
    values = {
        "model": scale.run_model,
        "data": {"sets": sets},
        "train": {
            "steps": scale.run_steps,
            "global_batch": scale.rows,
            "micro_batch": scale.rows,
            "log_every": max(1, scale.run_steps // INTERVALS),
            "eval_rows": 1,
        },
    }
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    run_bytelm("train", config, "--out", folder / "run")
    records = map(json.loads, (folder / "run" / METRICS).read_text().splitlines())
    return [record for record in records if record["kind"] == "train"]
