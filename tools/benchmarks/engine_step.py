"""The share of a training step spent outside forward, backward and optimizer: JSON lines.

    python tools/bench_step.py [--model small] [--steps N]

One line a figure: `name`, `value`, `unit`, `reference` and `ratio` (value / reference). The real
`bytelm train` runs on the demo's files, with every call of the model, of the backward pass and of
the optimizer timed; the rest of the time from step to step is waiting for data, DeepSpeed, counting
and logging. What DeepSpeed exchanges during the backward pass counts as the backward pass.

    step/overhead          one process, ZeRO 1; the reference is the aim, 5 %
    step/muon              one process: the optimizer's share; the reference is its aim, 8 %
    step/overhead/zeroN    two ranks, a row each, at ZeRO N; the reference is step/overhead
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"
OVERHEAD_AIM, MUON_AIM = 0.05, 0.08
WARM_STEPS = 3
"""Steps before the clock runs."""
PARTS = {
    "forward": (Megabyte, "forward"),
    "backward": (torch.Tensor, "backward"),
    "optimizer": (Muon, "step"),
}
SHARES = "shares.json"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What a step costs beside its arithmetic.")
    parser.add_argument("--model", default="small")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = [_prepared(folder, modality) for modality in ("text", "image")]
        values = {
            "model": options.model,
            "data": {"sets": [{"path": str(path), "weight": 1} for path in sets]},
            "train": {"steps": WARM_STEPS + options.steps, "eval_rows": 1},
        }
        config = folder / "run.yaml"
        config.write_text(yaml.safe_dump(values))
        alone = _shares(config, folder / "alone", 1, "zero1")
        _print("step/overhead", alone["rest"], OVERHEAD_AIM)
        _print("step/muon", alone["optimizer"], MUON_AIM)
        for case in ("zero1", "zero2", "zero3"):
            shares = _shares(config, folder / case, 2, case)
            _print(f"step/overhead/{case}", shares["rest"], alone["rest"])


def _prepared(folder: Path, modality: str) -> Path:
    out = folder / modality
    command = [sys.executable, "-m", "bytelm", "prepare"]
    subprocess.run([*command, DEMO / modality, "--out", out], check=True, stdout=subprocess.PIPE)
    return out


def _shares(config: Path, run: Path, ranks: int, case: str) -> dict[str, float]:
    """Train in so many processes, and read what rank 0 measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", __file__]
    arguments = ["train", config, "--out", run, "--set", f"train.deepspeed={case}"]
    arguments += ["--set", f"train.global_batch={ranks}"]
    threads = {"OMP_NUM_THREADS": str((os.cpu_count() or 1) // ranks)}
    subprocess.run(
        [*command, *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, **threads},
    )
    shares: dict[str, float] = json.loads((run / SHARES).read_text())
    return shares


def _print(name: str, value: float, reference: float) -> None:
    figure = {"name": name, "value": value, "unit": "of a step", "reference": reference}
    print(json.dumps({**figure, "ratio": value / reference}), flush=True)


class Clock:
    """Seconds of each step, and of its parts."""

    def __init__(self) -> None:
        self.now = dict.fromkeys(PARTS, 0.0)
        self.parts: list[dict[str, float]] = []
        self.ends: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for the part."""

        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **named)
            self.now[part] += time.perf_counter() - began
            return result

        return call

    def ended(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose end is that of a step."""

        def call(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            self.ends.append(time.perf_counter())
            self.parts.append(self.now)
            self.now = dict.fromkeys(PARTS, 0.0)
            return result

        return call

    def shares(self) -> dict[str, float]:
        """Medians of each part's share, and of the rest, over the steps after the first."""
        parts = self.parts[WARM_STEPS:]
        steps = [b - a for a, b in pairwise(self.ends[WARM_STEPS - 1 :])]
        timed = list(zip(parts, steps, strict=True))
        shares = {name: median(part[name] / step for part, step in timed) for name in PARTS}
        rest = median(1 - sum(part.values()) / step for part, step in timed)
        return {**shares, "rest": rest}


def rank(arguments: list[str]) -> int:
    """One process of a run: `bytelm ARGUMENTS` under the clock."""
    clock = Clock()
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    Engine.train_step = clock.ended(Engine.train_step)  # type: ignore[method-assign]
    status = run_command(arguments)
    if os.environ["RANK"] == "0":
        run = Path(arguments[arguments.index("--out") + 1])
        (run / SHARES).write_text(json.dumps(clock.shares()))
    return status


if __name__ == "__main__":
    if "RANK" in os.environ:
        sys.exit(rank(sys.argv[1:]))
    main()
