"""The models of the table of results, each trained once and exported without mixing in the output.

WORK/models/NAME/run      the run; a training that was stopped goes on from its checkpoint
WORK/models/NAME/network  its newest model, which does not mix
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bytelm.pipelines.checkpoints.run_folder import CHECKPOINTS_FOLDER, MODEL_FOLDER, step_of_name
from bytelm.tools.experiments.result_cells import CommandError, bytelm_output
from bytelm.tools.repository import DEMO_FILES

PREPARE_DEMO = {"text": (), "image": (), "audio": ("--rate", 16_000, "--channels", 1)}
"""Options of `prepare` for each of the demo's folders, as the demo has them."""
CHECKPOINTS = 3
"""Checkpoints of a training of the demo, evenly over its steps."""


@dataclass(frozen=True)
class TrainedModel:
    """A finished training."""

    run: Path
    """Its models mix in their output."""
    network: Path
    """The exported model whose output is the network's alone."""

    def by_step(self) -> dict[int, Path]:
        """The model of each checkpoint that the run keeps, by its step."""
        models = {}
        for folder in sorted((self.run / CHECKPOINTS_FOLDER).iterdir()):
            step = step_of_name(folder.name)
            if step is not None:
                models[step] = folder / MODEL_FOLDER
        return models


def demo_sets(work: Path) -> list[Path]:
    """The sets of the demo's files, made unless they exist."""
    sets = []
    for modality, options in PREPARE_DEMO.items():
        sets.append(work / "demo-sets" / modality)
        bytelm_output("prepare", DEMO_FILES / modality, "--out", sets[-1], *options)
    return sets


def demo_model(work: Path, steps: int) -> TrainedModel:
    """The demo's model, trained on the demo's sets for a number of steps."""
    folder = work / "models" / f"demo-{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    demo_sets(work)
    config = folder / "demo.yaml"
    template = (resources.files("bytelm.tools") / "demo.yaml").read_text("utf-8")
    config.write_text(template.replace("sets/", f"{(work / 'demo-sets').absolute()}/"), "utf-8")
    every = -(-steps // CHECKPOINTS)
    values = {
        "train.steps": steps,
        "train.checkpoint_every": every,
        "train.eval_every": every,
        "train.sample_every": 0,
        "optimizer.warmup_steps": max(1, steps // 20),
    }
    changes = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return _trained(folder, [config, *changes])


def model_of_minutes(work: Path, sets: Sequence[Path], minutes: float) -> TrainedModel:
    """The model that `bytelm train --data SETS --minutes M` chooses and trains."""
    folder = work / "models" / f"minutes-{minutes:g}"
    folder.mkdir(parents=True, exist_ok=True)
    return _trained(folder, ["--data", *sets, "--minutes", minutes])


def _trained(folder: Path, arguments: list[object]) -> TrainedModel:
    """Train unless that is done; a run that has a checkpoint goes on."""
    model = TrainedModel(folder / "run", folder / "network")
    if model.network.exists():
        return model
    if (model.run / CHECKPOINTS_FOLDER).is_dir() and model.by_step():
        arguments = ["--resume"]
    else:
        shutil.rmtree(model.run, ignore_errors=True)
    words = [str(word) for word in ("train", *arguments, "--out", model.run)]
    # The training shows its progress on the screen of this command, whose output are figures.
    done = subprocess.run([sys.executable, "-m", "bytelm", *words], check=False, stdout=sys.stderr)
    if done.returncode:
        raise CommandError(f"bytelm {' '.join(words)} ended with status {done.returncode}")
    bytelm_output("export", model.run, "--out", model.network, "--no-output-mixing")
    return model
