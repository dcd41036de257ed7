"""Golden losses: fifty steps of presets, by which a change of the numbers is seen.

    python -m bytelm.tools.golden_losses [FILE]

trains each of PRESETS in fp32 on short rows of the demo's unseen files, by the commands that a
user would type, and records the losses in FILE (`tests/golden_losses.json`). A test trains again
and compares. The rates are a tenth of the usual ones: at those, the other order of sums of another
processor moves a loss by 5e-3 within fifty steps. Record anew only after a change that is meant to
change the numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from bytelm.pipelines.training.metrics_logger import METRICS

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "golden_losses.json"
PRESETS = ("tiny", "modern-hour")
STEPS = 50
ROW = 512
"""Ids of a row, which is a step."""


def golden_losses(folder: Path) -> dict[str, list[float]]:
    """Nats for each scored id of every step, by preset; `folder` takes what the runs write."""
    sets = []
    for modality in ("text", "image", "audio"):
        sets.append(folder / modality)
        _bytelm("prepare", ROOT / "examples" / "demo" / modality / "val", "--out", sets[-1])
    values = {
        "data": {"sets": [{"path": str(path), "weight": 1} for path in sets], "workers": 0},
        "train": {"steps": STEPS, "precision": "fp32"},
        "optimizer": {"muon_lr": 0.002, "lr": 2e-4, "warmup_steps": 10},
    }
    losses = {}
    for preset in PRESETS:
        config, run = folder / f"{preset}.yaml", folder / preset
        config.write_text(yaml.safe_dump({"model": {"preset": preset, "context": ROW}, **values}))
        _bytelm("train", config, "--out", run)
        lines = [json.loads(line) for line in (run / METRICS).read_text("utf-8").splitlines()]
        losses[preset] = [line["loss"] for line in lines if line["kind"] == "train"]
    return losses


def _bytelm(*arguments: object) -> None:
    """Run a command with one thread, so that sums have one order."""
    command = [sys.executable, "-m", "bytelm", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)


def main() -> None:
    """Record."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    with tempfile.TemporaryDirectory() as folder:
        losses = golden_losses(Path(folder))
    file.write_text(json.dumps(losses, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
