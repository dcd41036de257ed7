"""Write checkpoints, and choose the one to resume from, on all ranks together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bytelm.pipelines.checkpoints.manifest import (
    FileEntry,
    checkpoint_damage,
    file_entry,
    write_checkpoint_manifest,
)
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.checkpoints.run_folder import (
    CHECKPOINTS_FOLDER,
    LATEST_FILE,
    MODEL_FOLDER,
    TEMPORARY_PREFIX,
    UsableCheckpoint,
    checkpoint_folders,
    checkpoint_name,
    newest_usable,
)
from bytelm.pipelines.checkpoints.train_state import TrainState, write_state
from bytelm.pipelines.errors import CheckpointError
from bytelm.pipelines.storage.files import rename_durably, write_atomic
from bytelm.pipelines.training.engine import Engine

FileEntries = dict[str, FileEntry]
"""Entries of the manifest, by path relative to the checkpoint's folder."""


class Checkpointer:
    """Writes and finds the checkpoints of a run. Every rank has one and calls it alike."""

    def __init__(self, engine: Engine, run: Path, extra: dict[str, Any]):
        """
        Args:
            extra: further keys of the exported model's config.
        """
        self.engine = engine
        self.run = run
        self.extra = extra

    def newest_usable(self) -> UsableCheckpoint:
        """Find the newest checkpoint whose every file is undamaged; each rank reads a part.

        Raises what `run_folder.newest_usable` does.
        """

        def find_damage(folder: Path) -> str | None:
            paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
            read_here = set(paths[self.engine.rank :: self.engine.ranks])
            damages = self.engine.gather([checkpoint_damage(folder, lambda p: p in read_here)])
            return next((damage for damage in damages if damage), None)

        return newest_usable(self.run, find_damage)

    def save(self, state: TrainState) -> Path:
        """Write a checkpoint, and remove the old ones that are not to be kept.

        Returns:
            The checkpoint's folder.
        Raises:
            CheckpointError: on every rank, if one of them could not write its part. The partial
                checkpoint is removed, and the earlier ones are unchanged.
        """
        name = checkpoint_name(state.step)
        folder = self.run / CHECKPOINTS_FOLDER / name
        temporary = _temporary(folder)

        def on_all_ranks(write: Callable[[], list[Path]]) -> list[FileEntries]:
            return self._on_all_ranks(write, temporary, state.step)

        on_all_ranks(lambda: self._make_folder(temporary))
        parts = on_all_ranks(lambda: self.engine.save(temporary))
        weights = self.engine.state_dict()
        parts += on_all_ranks(lambda: self._write_model(weights, temporary, state))
        files = {path: entry for part in parts for path, entry in part.items()}
        on_all_ranks(lambda: self._publish(temporary, folder, files, state.step))
        return folder

    def _on_all_ranks(
        self, write: Callable[[], list[Path]], temporary: Path, step: int
    ) -> list[FileEntries]:
        """Call a function that writes files, then wait for the other ranks to have done so.

        Returns:
            The entries of the files that each rank wrote, by rank.
        Raises:
            CheckpointError: on every rank, if the function failed on any.
        """
        entries: FileEntries = {}
        error = ""
        try:
            entries = {str(p.relative_to(temporary)): file_entry(p) for p in write()}
        except (OSError, RuntimeError, SafetensorError) as cause:
            error = _reason(cause)
        results = self.engine.gather([(entries, error)])
        errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(results) if error]
        if errors:
            if self.engine.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            self.engine.barrier()
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written, those before it are "
                f"as they were ({'; '.join(errors)})"
            )
        return [entries for entries, _ in results]

    def _make_folder(self, temporary: Path) -> list[Path]:
        """Create the folder on rank 0, and remove those that interrupted saves left."""
        if self.engine.rank == 0:
            for leftover in temporary.parent.glob(f"{TEMPORARY_PREFIX}*"):
                shutil.rmtree(leftover)
            for leftover in temporary.parent.glob(f"{LATEST_FILE}.*"):
                leftover.unlink()
            temporary.mkdir(parents=True)
        return []

    def _write_model(
        self, weights: dict[str, Any], temporary: Path, state: TrainState
    ) -> list[Path]:
        """Write the exported model and the state on rank 0, which alone has the weights."""
        if self.engine.rank != 0:
            return []
        model = temporary / MODEL_FOLDER
        save_pretrained(weights, self.engine.config.model, model, self.extra)
        return [*sorted(model.iterdir()), write_state(temporary, state)]

    def _publish(self, temporary: Path, folder: Path, files: FileEntries, step: int) -> list[Path]:
        """Write the manifest on rank 0, give the folder its name, and remove old checkpoints."""
        if self.engine.rank == 0:
            write_checkpoint_manifest(temporary, folder.name, files)
            rename_durably(temporary, folder)
            write_atomic(folder.parent / LATEST_FILE, folder.name.encode())
            self._remove_old(step)
        return []

    def _remove_old(self, step: int) -> None:
        """Remove the checkpoints that neither `keep_last` nor `keep_every` keeps."""
        config = self.engine.config.train
        done = [(number, path) for number, path in checkpoint_folders(self.run) if number <= step]
        for number, path in done[config.keep_last :]:
            if not (config.keep_every and number % config.keep_every == 0):
                # Renamed first: half a folder under a checkpoint's name would be a damaged one.
                path.rename(_temporary(path))
                shutil.rmtree(_temporary(path))


def _temporary(folder: Path) -> Path:
    return folder.with_name(f"{TEMPORARY_PREFIX}-{folder.name}")


def _reason(error: BaseException) -> str:
    """The system's error if there is one behind torch's, which speaks of its own file format."""
    cause = error
    while not isinstance(cause, OSError) and cause.__context__:
        cause = cause.__context__
    return str(cause if isinstance(cause, OSError) else error)
