"""Checkpoints of a run, and the way from a path that a user gives to a model's folder.

    RUN/checkpoints/step-00000100/deepspeed/    weights and optimizer, a part of each rank
    RUN/checkpoints/step-00000100/model/        the exported model, as `bytelm export` copies it
    RUN/checkpoints/step-00000100/state.json    step, place in the data, and what must be the same
    RUN/checkpoints/latest                      name of the newest whole checkpoint

A checkpoint is written under a temporary name, fsynced, renamed, and named in `latest` last.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bytelm.model.config import ModelConfig
from bytelm.model.hub import CONFIG_FILE, from_pretrained, save_pretrained
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.engine import Engine
from bytelm.pipelines.shardwriter import fsync_folder, write_atomic

FORMAT = 1
FOLDER = "checkpoints"
LATEST = "latest"
STATE = "state.json"
MODEL = "model"


@dataclass(frozen=True)
class TrainState:
    """Where a run stands: the steps done, and the next row of the data."""

    step: int
    epoch: int
    row: int
    plan: dict[str, Any]
    """Identity of the plan that `epoch` and `row` belong to."""
    ranks: int
    zero_stage: int


def save(
    engine: Engine, run: Path, state: TrainState, model: ModelConfig, extra: dict[str, Any]
) -> Path:
    """Write a checkpoint; every rank has to call it.

    Args:
        extra: what the exported model's config says beside the model's shape.
    """
    folder = run / FOLDER / f"step-{state.step:08d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    if engine.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    engine.barrier()
    engine.save(temporary)
    weights = engine.state_dict()
    engine.barrier()
    if engine.rank == 0:
        save_pretrained(weights, model, temporary / MODEL, extra)
        document = {"format": FORMAT, **dataclasses.asdict(state)}
        write_atomic(temporary / STATE, json.dumps(document, indent=1).encode())
        _fsync_tree(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        fsync_folder(folder.parent)
        write_atomic(run / FOLDER / LATEST, folder.name.encode())
    engine.barrier()
    return folder


def _fsync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            with open(Path(parent) / name, "rb") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(parent))


def newest(run: Path) -> tuple[Path, TrainState]:
    """The newest checkpoint of a run and its state; ValueError where there is none."""
    pointer = run / FOLDER / LATEST
    if not pointer.is_file():
        raise ValueError(f"{run} has no checkpoint: start the run without --resume")
    folder = pointer.with_name(pointer.read_text().strip())
    try:
        values = json.loads((folder / STATE).read_text())
        version = values.pop("format")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoint {folder} is incomplete or damaged ({error})") from error
    if version != FORMAT:
        raise ValueError(
            f"checkpoint {folder} has format version {version}, this bytelm reads {FORMAT}: "
            "resume it with the bytelm that wrote it"
        )
    return folder, TrainState(**values)


def model_folder(path: Path) -> str:
    """The folder of the exported model that a user means: a run's newest, or the path itself.

    A path that does not exist here is given back as it is, for the Hugging Face hub.
    """
    if (path / CONFIG_FILE).is_file() and not (path / FOLDER).is_dir():
        return str(path)
    if (path / FOLDER / LATEST).is_file():
        return str(newest(path)[0] / MODEL)
    if path.is_dir():
        raise ValueError(
            f"{path} is neither a run with a checkpoint nor an exported model: "
            "train it further, or name another folder"
        )
    return str(path)


def load_model(path: Path) -> tuple[Megabyte, dict[str, str]]:
    """The model that a user means by a path, on the GPU where there is one, and its views.

    Raises ValueError for what is missing, damaged, or of another format version.
    """
    model, extra = from_pretrained(model_folder(path))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), extra["views"]


def export(run: Path, out: Path) -> None:
    """Copy a run's newest exported model to a folder of its own."""
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out, or remove it")
    source = model_folder(run)
    if not Path(source).is_dir():
        raise ValueError(f"no run at {run}")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    _fsync_tree(temporary)
    temporary.rename(out)
