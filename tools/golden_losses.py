"""Golden losses: recorded losses of fifty steps of presets, which show a change of the numbers.

    python -m bytelm.tools.golden_losses [FILE]

Trains each of PRESETS in fp32 on short rows of the demo's unseen files, by the commands that a user
would type, and records the losses in FILE (`tests/golden_losses.json`); takes about two minutes.
`tests/training/test_golden_losses.py` trains again and compares. The rates are a tenth of the usual
ones: at those, another processor's order of sums moves a loss by 5e-3 within fifty steps. Record
again only after a change that is meant to change the numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import yaml

from bytelm.pipelines.training.metrics_logger import METRICS
from bytelm.tools.repository import DEMO_FILES, ROOT, run_bytelm

FILE = ROOT / "tests" / "golden_losses.json"
PRESETS = ("tiny", "modern-hour")
STEPS = 50
ROW_LENGTH = 512
"""Ids of a row; a step has one row."""


def golden_losses(folder: Path) -> dict[str, list[float]]:
    """Mean nats per scored id of every step, by preset.

    Runs have one thread, so that sums have one order.

    Args:
        folder: takes the sets and the runs.
    """
    sets = [folder / modality for modality in ("text", "image", "audio")]
    for path in sets:
        run_bytelm("prepare", DEMO_FILES / path.name / "val", "--out", path, OMP_NUM_THREADS="1")
    values = {
        "data": {"sets": [{"path": str(path), "weight": 1} for path in sets], "workers": 0},
        "train": {"steps": STEPS, "precision": "fp32"},
        "optimizer": {"muon_lr": 0.002, "lr": 2e-4, "warmup_steps": 10},
    }
    losses = {}
    for preset in PRESETS:
        config, run = folder / f"{preset}.yaml", folder / preset
        config.write_text(
            yaml.safe_dump({"model": {"preset": preset, "context": ROW_LENGTH}, **values})
        )
        run_bytelm("train", config, "--out", run, OMP_NUM_THREADS="1")
        lines = [json.loads(line) for line in (run / METRICS).read_text("utf-8").splitlines()]
        losses[preset] = [line["loss"] for line in lines if line["kind"] == "train"]
    return losses


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description="Record the losses of fifty steps of presets.")
    parser.add_argument("file", type=Path, nargs="?", default=FILE, metavar="FILE")
    file = parser.parse_args().file
    with tempfile.TemporaryDirectory() as folder:
        losses = golden_losses(Path(folder))
    file.write_text(json.dumps(losses, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
