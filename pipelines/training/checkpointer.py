"""Writing checkpoints, and choosing the one to resume from, on all ranks together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bytelm.model.config import ModelConfig
from bytelm.pipelines.checkpoints.manifest import (
    FileEntry,
    checkpoint_damage,
    file_entry,
    write_checkpoint_manifest,
)
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.checkpoints.run_folder import (
    FOLDER,
    LATEST,
    MODEL,
    TEMPORARY,
    UsableCheckpoint,
    checkpoint_folders,
    newest,
)
from bytelm.pipelines.checkpoints.train_state import TrainState, write_state
from bytelm.pipelines.config import TrainConfig
from bytelm.pipelines.errors import CheckpointError
from bytelm.pipelines.storage.files import fsync_folder, write_atomic
from bytelm.pipelines.training.engine import Engine


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

    def together(write: Callable[[], list[Path]]) -> list[dict[str, FileEntry]]:
        """What each rank wrote, once all have; CheckpointError where one could not."""
        entries: dict[str, FileEntry] = {}
        error = ""
        try:
            entries = {str(p.relative_to(temporary)): file_entry(p) for p in write()}
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
        write_checkpoint_manifest(temporary, folder.name, files)
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
    return [*sorted((temporary / MODEL).iterdir()), write_state(temporary, state)]


def _remove_old(run: Path, step: int, config: TrainConfig) -> None:
    """Remove what is neither one of the newest nor to be kept for good."""
    done = [(n, folder) for n, folder in checkpoint_folders(run) if n <= step]
    for number, folder in done[config.keep_last :]:
        if not (config.keep_every and number % config.keep_every == 0):
            # Renamed first: what is half removed is no checkpoint that could be refused.
            temporary = folder.with_name(f"{TEMPORARY}-{folder.name}")
            folder.rename(temporary)
            shutil.rmtree(temporary)


def newest_together(engine: Engine, run: Path) -> UsableCheckpoint:
    """The newest checkpoint of a run whose every file is what was written. Every rank has to call
    it, reads its share of the files, and raises as `newest` does."""

    def damage(folder: Path) -> str | None:
        paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
        own = set(paths[engine.rank :: engine.ranks])
        causes = engine.gather([checkpoint_damage(folder, lambda path: path in own)])
        return next((cause for cause in causes if cause), None)

    return newest(run, damage)
