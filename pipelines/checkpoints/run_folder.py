"""The checkpoints in a run's folder: their names, and which of them is the newest usable one.

    RUN/config.json                               the config, resolved
    RUN/config.yaml                               the config with its reasons, if it was chosen
    RUN/checkpoints/step-00000100/deepspeed/      weights and optimizer state, one part a rank
    RUN/checkpoints/step-00000100/model/          the exported model, as `bytelm export` copies it
    RUN/checkpoints/step-00000100/state.json      step, position in the data, identity of the plan
    RUN/checkpoints/step-00000100/manifest.json   size and SHA-256 of every file
    RUN/checkpoints/latest                        name of the newest whole checkpoint
    RUN/checkpoints/refused-step-00000100/        was damaged when a run was resumed

A checkpoint is written under a temporary name, fsynced, renamed, and named in `latest` last. The
checkpoint that is loaded is the newest one that agrees with its manifest. `latest` is for people:
it is checked, and a disagreement is reported, but it decides nothing.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytelm.pipelines.checkpoints.manifest import DEEPSPEED_FOLDER, checkpoint_damage
from bytelm.pipelines.checkpoints.train_state import STATE_FILE, TrainState, read_state
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.storage.files import write_atomic

CONFIG_FILE = "config.json"
"""The run's resolved config; an exported model has another file of this name."""
CHOSEN_CONFIG_FILE = "config.yaml"
CHECKPOINTS_FOLDER = "checkpoints"
MODEL_FOLDER = "model"
LATEST_FILE = "latest"
TEMPORARY_PREFIX = ".tmp"
REFUSED_PREFIX = "refused-"
_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class UsableCheckpoint:
    """The newest undamaged checkpoint of a run."""

    folder: Path
    state: TrainState
    refused: list[str]
    """A line for each newer checkpoint, which is damaged, and for a `latest` that is wrong."""


def checkpoint_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of_name(name: str) -> int | None:
    """Return the step of the checkpoint that a folder's name belongs to; None if to none."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def checkpoint_step(model: Path) -> int | None:
    """Return the step of the checkpoint that a model's folder belongs to; None if to none."""
    return step_of_name(model.parent.name) if model.name == MODEL_FOLDER else None


def checkpoint_folders(run: Path) -> list[tuple[int, Path]]:
    """List step and folder of each checkpoint of a run, newest first."""
    parent = run / CHECKPOINTS_FOLDER
    if not parent.is_dir():
        return []
    steps = ((step_of_name(path.name), path) for path in parent.iterdir())
    return sorted(((step, path) for step, path in steps if step is not None), reverse=True)


def steps_to_remove(steps: Iterable[int], keep_last: int, keep_every: int) -> list[int]:
    """List those of a run's checkpoints that neither `keep_last` nor `keep_every` keeps, newest
    first."""
    older = sorted(steps, reverse=True)[keep_last:]
    return [step for step in older if not (keep_every and step % keep_every == 0)]


def has_checkpoint(run: Path) -> bool:
    """Return whether a run has any checkpoint, damaged or not."""
    return bool(checkpoint_folders(run))


def saved_config(run: Path) -> dict[str, Any] | None:
    """Read the config that a run was last trained with; None if it has none that can be read."""
    try:
        return parse_config((run / CONFIG_FILE).read_bytes())
    except OSError:
        return None


def parse_config(data: bytes) -> dict[str, Any] | None:
    """Return the values in the bytes of a run's CONFIG_FILE; None if they are none."""
    try:
        values = json.loads(data)
    except ValueError:
        return None
    return values if isinstance(values, dict) and "train" in values else None


def newest_usable(run: Path, find_damage: Callable[[Path], str | None]) -> UsableCheckpoint:
    """Find the newest undamaged checkpoint of a run.

    Args:
        find_damage: returns what is wrong with a checkpoint's folder, or None.
    Raises:
        ValueError: if the run has no checkpoint, or the newest has another format version.
        DamageError: if every checkpoint is damaged.
    """
    folders = [folder for _, folder in checkpoint_folders(run)]
    if not folders:
        raise ValueError(
            f"{run} has no checkpoint: add --allow-fresh-start to begin it at step 0, or name "
            "another run"
        )
    refused: list[str] = []
    for folder in folders:
        damage = find_damage(folder)
        if damage is None:
            messages = _wrong_latest(folders[0]) + refused
            return UsableCheckpoint(folder, read_state(folder), messages)
        refused.append(f"{folder}: {damage}")
    raise DamageError(
        f"no checkpoint of {run} can be used, and a run never goes back to step 0 by itself: "
        + "; ".join(refused)
    )


def damage_outside_tensors(folder: Path) -> str | None:
    """Find damage without reading tensors: manifest, list of files, sizes, and the state."""
    return checkpoint_damage(folder, lambda path: path == STATE_FILE)


def model_damage(folder: Path) -> str | None:
    """Find damage that concerns the exported model: DeepSpeed's files are not read."""
    return checkpoint_damage(folder, lambda path: not path.startswith(f"{DEEPSPEED_FOLDER}/"))


def rename_refused(run: Path, checkpoint: UsableCheckpoint) -> None:
    """Rename the checkpoints newer than the one that was loaded, and name that one in `latest`.

    Rank 0 calls it after the load.
    """
    for step, folder in checkpoint_folders(run):
        if step > checkpoint.state.step:
            refused = folder.with_name(REFUSED_PREFIX + folder.name)
            shutil.rmtree(refused, ignore_errors=True)
            folder.rename(refused)
    write_atomic(run / CHECKPOINTS_FOLDER / LATEST_FILE, checkpoint.folder.name.encode())


def _wrong_latest(newest: Path) -> list[str]:
    """A line if `latest` cannot be read or does not name the newest checkpoint."""
    latest = newest.with_name(LATEST_FILE)
    try:
        name = latest.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        return [f"{latest} cannot be read ({error.strerror}); the newest is {newest.name}"]
    if name == newest.name:
        return []
    return [f"{latest} names {name[:40]!r}; the newest is {newest.name}"]
