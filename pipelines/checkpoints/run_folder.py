"""Checkpoints of a run, and the way from a path that a user gives to a model's folder.

    RUN/checkpoints/step-00000100/deepspeed/      weights and optimizer, a part of each rank
    RUN/checkpoints/step-00000100/model/          the exported model, as `bytelm export` copies it
    RUN/checkpoints/step-00000100/state.json      step, place in the data, and what must be the same
    RUN/checkpoints/step-00000100/manifest.json   size and SHA-256 of every file
    RUN/checkpoints/latest                        name of the newest whole checkpoint
    RUN/checkpoints/refused-step-00000100/        was damaged when a run was resumed

A checkpoint is written under a temporary name, fsynced, renamed, and named in `latest` last. What
is loaded is the newest one that is what its manifest says; `latest` is a name for people, and so
is checked, not trusted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bytelm.pipelines.checkpoints.manifest import checkpoint_damage
from bytelm.pipelines.checkpoints.train_state import STATE, TrainState, read_state
from bytelm.pipelines.shards.reader import DamageError
from bytelm.pipelines.storage.files import write_atomic

FOLDER = "checkpoints"
LATEST = "latest"
MODEL = "model"
NAME = re.compile(r"step-(\d{8,})")
TEMPORARY = ".tmp"
REFUSED = "refused-"


@dataclass(frozen=True)
class UsableCheckpoint:
    """The newest checkpoint that can be used."""

    folder: Path
    state: TrainState
    refused: list[str]
    """A line for each newer one that cannot, and for a `latest` that names another."""


def checkpoint_folders(run: Path) -> list[tuple[int, Path]]:
    """Steps and folders of a run's checkpoints, the newest first."""
    if not (run / FOLDER).is_dir():
        return []
    matches = ((NAME.fullmatch(p.name), p) for p in (run / FOLDER).iterdir())
    return sorted(((int(m[1]), p) for m, p in matches if m), reverse=True)


def has_any(run: Path) -> bool:
    """Whether a run has a checkpoint, damaged or not."""
    return bool(checkpoint_folders(run))


def newest(run: Path, damage: Callable[[Path], str | None]) -> UsableCheckpoint:
    """The newest checkpoint of a run in which nothing is wrong.

    Args:
        damage: what is wrong with a folder, or None.
    Raises:
        ValueError: for a run without checkpoints, or one of another format version.
        DamageError: where every checkpoint is damaged.
    """
    folders = [folder for _, folder in checkpoint_folders(run)]
    if not folders:
        raise ValueError(
            f"{run} has no checkpoint: add --or-start to begin it at step 0, or name another run"
        )
    refused: list[str] = []
    for folder in folders:
        cause = damage(folder)
        if cause is None:
            return UsableCheckpoint(
                folder, read_state(folder), _pointer_damage(folders[0]) + refused
            )
        refused.append(f"{folder}: {cause}")
    raise DamageError(
        f"no checkpoint of {run} can be used, and a run never goes back to step 0 by itself: "
        + "; ".join(refused)
    )


def quick_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint as far as can be seen without reading its tensors."""
    return checkpoint_damage(folder, lambda path: path == STATE)


def model_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint as far as its exported model is concerned."""
    return checkpoint_damage(folder, lambda path: not path.startswith("deepspeed/"))


def set_refused_aside(run: Path, found: UsableCheckpoint) -> None:
    """Rename what is newer than the checkpoint that a run goes on from, and name that in
    `latest`. Rank 0 calls it, once the checkpoint is loaded."""
    for step, folder in checkpoint_folders(run):
        if step > found.state.step:
            aside = folder.with_name(REFUSED + folder.name)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    write_atomic(run / FOLDER / LATEST, found.folder.name.encode())


def _pointer_damage(newest_folder: Path) -> list[str]:
    pointer = newest_folder.with_name(LATEST)
    try:
        named = pointer.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        return [f"{pointer} cannot be read ({error.strerror}); the newest is {newest_folder.name}"]
    if named == newest_folder.name:
        return []
    return [f"{pointer} names {named[:40]!r}; the newest is {newest_folder.name}"]
