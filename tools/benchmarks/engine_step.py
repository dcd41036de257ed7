"""Fraction of a training step spent outside forward, backward and optimizer.

    python -m bytelm.tools.benchmarks.engine_step [--model small] [--steps N]

Prints a JSON line a figure: `name`, `value`, `unit`, `reference` and `ratio` (value / reference).
`bytelm train` runs on the demo's files, and every call of the model, of the backward pass and of
the optimizer is timed. The rest of the time from step to step is waiting for data, DeepSpeed,
counting and logging. What DeepSpeed exchanges during the backward pass counts as the backward pass.
Takes some minutes on two cores.

    step/overhead          one process, ZeRO 1: the rest; reference: the aim, 5 %
    step/muon              one process, ZeRO 1: the optimizer; reference: the aim, 8 %
    step/overhead/zeroN    two ranks, a row each, at ZeRO N: the rest; reference: step/overhead
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.cli.main import main as run_command
from bytelm.pipelines.training.engine import Engine
from bytelm.pipelines.training.muon import Muon
from bytelm.tools.benchmarks.measure import Figure, print_figures
from bytelm.tools.repository import DEMO_FILES, run_bytelm

OVERHEAD_AIM, MUON_AIM = 0.05, 0.08
WARM_UP_STEPS = 3
"""Steps that are not measured."""
PARTS = {
    "forward": (Megabyte, "forward"),
    "backward": (torch.Tensor, "backward"),
    "optimizer": (Muon, "step"),
}
"""Name of each timed part, and the method that it is."""
REST = "rest"
FRACTIONS_FILE = "step_fractions.json"
"""File in a run's folder in which rank 0 writes the fractions that it measured."""


def step_figures(model: str, steps: int, folder: Path) -> Iterator[Figure]:
    """Figures of `steps` steps of a preset; `folder` takes the sets and the runs."""
    config = _write_config(model, steps, folder)
    alone = _measure(config, folder / "alone", 1, "zero1")
    yield Figure("step/overhead", alone[REST], "of a step", OVERHEAD_AIM)
    yield Figure("step/muon", alone["optimizer"], "of a step", MUON_AIM)
    for deepspeed in ("zero1", "zero2", "zero3"):
        rest = _measure(config, folder / deepspeed, 2, deepspeed)[REST]
        yield Figure(f"step/overhead/{deepspeed}", rest, "of a step", alone[REST])


def _write_config(model: str, steps: int, folder: Path) -> Path:
    """Prepare the demo's texts and images, and write the config of a run on them."""
    sets = [folder / modality for modality in ("text", "image")]
    for shard_set in sets:
        run_bytelm("prepare", DEMO_FILES / shard_set.name, "--out", shard_set)
    values = {
        "model": model,
        "data": {"sets": [{"path": str(path), "weight": 1} for path in sets]},
        "train": {"steps": WARM_UP_STEPS + steps, "eval_rows": 1},
    }
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def _measure(config: Path, run: Path, ranks: int, deepspeed: str) -> dict[str, float]:
    """Train in `ranks` processes; returns the fractions that rank 0 measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "--module", "bytelm.tools.benchmarks.engine_step"]
    command += ["train", str(config), "--out", str(run)]
    command += ["--set", f"train.deepspeed={deepspeed}", "--set", f"train.global_batch={ranks}"]
    threads = str((os.cpu_count() or 1) // ranks)
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    fractions: dict[str, float] = json.loads((run / FRACTIONS_FILE).read_text())
    return fractions


class StepClock:
    """Seconds of each step of this process, and of each of PARTS in it."""

    def __init__(self) -> None:
        self._current = dict.fromkeys(PARTS, 0.0)
        self._parts: list[dict[str, float]] = []
        self._ends: list[float] = []

    def timed_part(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to the part."""

        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **named)
            self._current[part] += time.perf_counter() - began
            return result

        return call

    def timed_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose return is the end of a step."""

        def call(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            self._ends.append(time.perf_counter())
            self._parts.append(self._current)
            self._current = dict.fromkeys(PARTS, 0.0)
            return result

        return call

    def fractions(self) -> dict[str, float]:
        """Median fraction of a step of each part and of the rest, after WARM_UP_STEPS."""
        parts = self._parts[WARM_UP_STEPS:]
        seconds = [end - start for start, end in pairwise(self._ends[WARM_UP_STEPS - 1 :])]
        steps = list(zip(parts, seconds, strict=True))
        fractions = {name: median(part[name] / step for part, step in steps) for name in PARTS}
        rest = median(1 - sum(part.values()) / step for part, step in steps)
        return {**fractions, REST: rest}


def run_rank(arguments: list[str]) -> int:
    """Run `bytelm ARGUMENTS` as one process of a run, under the clock; returns its exit status."""
    clock = StepClock()
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, clock.timed_part(part, getattr(owner, name)))
    Engine.train_step = clock.timed_step(Engine.train_step)  # type: ignore[method-assign]
    status = run_command(arguments)
    if os.environ["RANK"] == "0":
        run = Path(arguments[arguments.index("--out") + 1])
        (run / FRACTIONS_FILE).write_text(json.dumps(clock.fractions()))
    return status


def main() -> None:
    """Measure and print; in a process of torchrun, run that rank."""
    if "RANK" in os.environ:
        sys.exit(run_rank(sys.argv[1:]))
    parser = argparse.ArgumentParser(description="Parts of a training step's time.")
    parser.add_argument("--model", default="small", help="preset to train")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print_figures(step_figures(options.model, options.steps, Path(folder)))


if __name__ == "__main__":
    main()
