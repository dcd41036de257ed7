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

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bytelm.model.config import ModelConfig
from bytelm.model.hub import CONFIG_FILE, from_pretrained, save_pretrained
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import TrainConfig
from bytelm.pipelines.engine import Engine
from bytelm.pipelines.integrity import Entry, describe, find_damage, write_manifest
from bytelm.pipelines.seen import Seen
from bytelm.pipelines.shards import DamageError
from bytelm.pipelines.shardwriter import fsync_folder, write_atomic
from bytelm.pipelines.watch import OnAllRanksError, Watch

FOLDER = "checkpoints"
LATEST = "latest"
STATE = "state.json"
MODEL = "model"
NAME = re.compile(r"step-(\d{8,})")
TEMPORARY = ".tmp"
REFUSED = "refused-"


class CheckpointError(OnAllRanksError):
    """A checkpoint that could not be written; the ones before it are as they were."""


@dataclass(frozen=True)
class TrainState:
    """Where a run stands: the steps done, the next row of the data, and what was counted."""

    step: int
    epoch: int
    row: int
    plan: dict[str, Any]
    """Identity of the plan that `epoch` and `row` belong to."""
    ranks: int
    zero_stage: int
    masked_bytes: int = 0
    """Payload bytes that were damaged and masked so far."""
    watch: Watch = field(default_factory=Watch)


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that can be used."""

    folder: Path
    state: TrainState
    refused: list[str]
    """A line for each newer one that cannot, and for a `latest` that names another."""


def save(
    engine: Engine, run: Path, state: TrainState, model: ModelConfig, extra: dict[str, Any]
) -> Path:
    """Write a checkpoint and remove those that are not to be kept; every rank has to call it.

    Args:
        extra: what the exported model's config says beside the model's shape.
    Raises:
        CheckpointError: on every rank, where one of them could not write its part. What was
            written is removed, and the checkpoints before it are as they were.
    """
    folder = run / FOLDER / f"step-{state.step:08d}"
    temporary = folder.with_name(f"{TEMPORARY}-{folder.name}")

    def together(write: Callable[[], list[Path]]) -> list[dict[str, Entry]]:
        """What each rank wrote, once all have; CheckpointError where one could not."""
        entries: dict[str, Entry] = {}
        error = ""
        try:
            entries = {str(p.relative_to(temporary)): describe(p) for p in write()}
        except (OSError, RuntimeError, SafetensorError) as cause:
            error = _reason(cause)
        results = engine.gather([(entries, error)])
        errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(results) if error]
        if errors:
            if engine.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            engine.barrier()
            raise CheckpointError(
                f"the checkpoint of step {state.step} could not be written, those before it are "
                f"as they were ({'; '.join(errors)})"
            )
        return [entries for entries, _ in results]

    def prepare() -> list[Path]:
        for old in folder.parent.glob(f"{TEMPORARY}*"):
            shutil.rmtree(old)
        temporary.mkdir(parents=True)
        return []

    def finish() -> list[Path]:
        write_manifest(temporary, folder.name, files)
        temporary.rename(folder)
        fsync_folder(folder.parent)
        write_atomic(folder.parent / LATEST, folder.name.encode())
        _remove_old(run, state.step, engine.config.train)
        return []

    together(prepare if engine.rank == 0 else list)
    parts = together(lambda: engine.save(temporary))
    weights = engine.state_dict()
    parts += together(lambda: _write_model(weights, temporary, state, model, extra))
    files = {path: entry for part in parts for path, entry in part.items()}
    together(finish if engine.rank == 0 else list)
    return folder


def _reason(error: BaseException) -> str:
    """Why a file could not be written. torch says it of its own format, and behind that is what
    the system said."""
    behind = error
    while not isinstance(behind, OSError) and behind.__context__:
        behind = behind.__context__
    return str(behind if isinstance(behind, OSError) else error)


def _write_model(
    weights: dict[str, torch.Tensor],
    temporary: Path,
    state: TrainState,
    model: ModelConfig,
    extra: dict[str, Any],
) -> list[Path]:
    """The exported model and the state, where there are weights: on rank 0."""
    if not weights:
        return []
    save_pretrained(weights, model, temporary / MODEL, extra)
    write_atomic(temporary / STATE, json.dumps(dataclasses.asdict(state), indent=1).encode())
    return [*sorted((temporary / MODEL).iterdir()), temporary / STATE]


def _remove_old(run: Path, step: int, config: TrainConfig) -> None:
    """Remove what is neither one of the newest nor to be kept for good."""
    done = [(n, folder) for n, folder in _checkpoints(run) if n <= step]
    for number, folder in done[config.keep_last :]:
        if not (config.keep_every and number % config.keep_every == 0):
            # Renamed first: what is half removed is no checkpoint that could be refused.
            temporary = folder.with_name(f"{TEMPORARY}-{folder.name}")
            folder.rename(temporary)
            shutil.rmtree(temporary)


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Steps and folders of a run's checkpoints, the newest first."""
    if not (run / FOLDER).is_dir():
        return []
    matches = ((NAME.fullmatch(p.name), p) for p in (run / FOLDER).iterdir())
    return sorted(((int(m[1]), p) for m, p in matches if m), reverse=True)


def has_any(run: Path) -> bool:
    """Whether a run has a checkpoint, damaged or not."""
    return bool(_checkpoints(run))


def newest(run: Path, damage: Callable[[Path], str | None]) -> Found:
    """The newest checkpoint of a run in which nothing is wrong.

    Args:
        damage: what is wrong with a folder, or None.
    Raises:
        ValueError: for a run without checkpoints, or one of another format version.
        DamageError: where every checkpoint is damaged.
    """
    folders = [folder for _, folder in _checkpoints(run)]
    if not folders:
        raise ValueError(
            f"{run} has no checkpoint: add --or-start to begin it at step 0, or name another run"
        )
    refused: list[str] = []
    for folder in folders:
        cause = damage(folder)
        if cause is None:
            return Found(folder, _read_state(folder), _pointer_damage(folders[0]) + refused)
        refused.append(f"{folder}: {cause}")
    raise DamageError(
        f"no checkpoint of {run} can be used, and a run never goes back to step 0 by itself: "
        + "; ".join(refused)
    )


def quick_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint as far as can be seen without reading its tensors."""
    return find_damage(folder, lambda path: path == STATE)


def model_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint as far as its exported model is concerned."""
    return find_damage(folder, lambda path: not path.startswith("deepspeed/"))


def newest_together(engine: Engine, run: Path) -> Found:
    """The newest checkpoint of a run whose every file is what was written. Every rank has to call
    it, reads its share of the files, and raises as `newest` does."""

    def damage(folder: Path) -> str | None:
        paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
        own = set(paths[engine.rank :: engine.ranks])
        causes = engine.gather([find_damage(folder, lambda path: path in own)])
        return next((cause for cause in causes if cause), None)

    return newest(run, damage)


def set_refused_aside(run: Path, found: Found) -> None:
    """Rename what is newer than the checkpoint that a run goes on from, and name that in
    `latest`. Rank 0 calls it, once the checkpoint is loaded."""
    for step, folder in _checkpoints(run):
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


def _read_state(folder: Path) -> TrainState:
    values = json.loads((folder / STATE).read_text())
    return TrainState(**{**values, "watch": Watch(**values["watch"])})


def model_folder(path: Path) -> str:
    """The folder of the exported model that a user means: a run's newest, or the path itself.

    A path that does not exist here is given back as it is, for the Hugging Face hub. Checkpoints
    whose model is damaged are named on stderr and passed over.
    """
    if (path / CONFIG_FILE).is_file() and not (path / FOLDER).is_dir():
        return str(path)
    if has_any(path):
        found = newest(path, model_damage)
        for line in found.refused:
            print(f"refused {line}", file=sys.stderr)
        return str(found.folder / MODEL)
    if path.is_dir():
        raise ValueError(
            f"{path} is neither a run with a checkpoint nor an exported model: "
            "train it further, or name another folder"
        )
    return str(path)


def load_model(path: Path) -> tuple[Megabyte, Seen]:
    """The model that a user means by a path, on the GPU where there is one, and what it has seen.

    Raises ValueError for what is missing, damaged, or of another format version.
    """
    model, extra = from_pretrained(model_folder(path))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), Seen.from_extra(extra)


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
    for file in temporary.iterdir():
        describe(file)
    fsync_folder(temporary)
    temporary.rename(out)
