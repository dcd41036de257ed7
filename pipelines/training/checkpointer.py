"""Write checkpoints beside the steps, and choose the one to resume from, on all ranks together.

A save has three phases. `begin` copies each rank's part to the host's memory, which is all that
the steps wait for. A thread of each rank then writes and fsyncs its files, and a thread of rank 0
writes the manifest, gives the folder its name and removes old checkpoints. Threads exchange nothing
between ranks: the trainer sums, with its other requests before each step, how many ranks are busy,
and all of them call `advance` when none is. The writing is spread over the steps until something
waits for it.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
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
    steps_to_remove,
)
from bytelm.pipelines.checkpoints.train_state import TrainState, write_state
from bytelm.pipelines.errors import CheckpointError
from bytelm.pipelines.storage.background import Throttle, lower_priority, no_rest
from bytelm.pipelines.storage.files import rename_durably, write_atomic
from bytelm.pipelines.training.engine import Engine
from bytelm.pipelines.training.state_copy import (
    copied_to_memory,
    fits_in_memory,
    write_state_file,
)

FileEntries = dict[str, FileEntry]
"""Entries of the manifest, by path relative to the checkpoint's folder."""
Write = Callable[[], list[Path]]
"""A function that writes files, and returns them."""
NICENESS = 5
"""Added to that of the thread that writes: where steps use all cores, it takes a quarter of one.
With more, other processes of the machine would hold it up until the next save waits for it."""
SPREAD = 0.5
"""Part of the time between two saves over which the writing of one is spread at most, so that it is
done when the next one begins."""


@dataclass
class _Save:
    """A checkpoint that is being written."""

    state: TrainState
    folder: Path
    throttle: Throttle
    """Rests of the thread that writes."""
    writes: list[Write] = field(default_factory=list)
    """This rank's files, to be written in this order."""
    is_published: bool = False
    """The files of all ranks are written: the job that runs is rank 0's, which publishes."""

    @property
    def temporary(self) -> Path:
        return _temporary(self.folder)


class Checkpointer:
    """Writes and finds the checkpoints of a run. Every rank has one and calls it alike."""

    def __init__(self, engine: Engine, run: Path, extra: dict[str, Any], share: float):
        """
        Args:
            extra: further keys of the exported model's config.
            share: of one core, that writing takes; `math.inf` has no limit.
        """
        self.engine = engine
        self.run = run
        self.extra = extra
        self.is_held: Callable[[Path], bool] = lambda folder: False
        """Says of a checkpoint's folder whether an upload reads it, so that it has to stay."""
        self._share = share
        self._last_begin = time.monotonic()
        self._save: _Save | None = None
        self._job: Future[FileEntries]
        self._thread = ThreadPoolExecutor(1, "checkpoint", lower_priority, (NICENESS,))
        self._cancelled = threading.Event()

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

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint is being written; the same on all ranks."""
        return self._save is not None

    @property
    def is_busy(self) -> bool:
        """Whether this rank's thread is writing."""
        return self.is_saving and not self._job.done()

    def begin(self, state: TrainState) -> None:
        """Copy the state to memory and begin to write it. No other save may be under way.

        A part whose copy has no room in memory is written before this returns, and so are all with
        `train.async_checkpoints` off.

        Raises:
            CheckpointError: on every rank, if one of them could not take or write its part. The
                partial checkpoint is removed, and the earlier ones are unchanged.
        """
        assert not self.is_saving
        folder = self.run / CHECKPOINTS_FOLDER / checkpoint_name(state.step)
        save = _Save(state, folder, self._new_throttle())
        self._on_all_ranks(save, lambda: self._make_folder(save.temporary))
        self._on_all_ranks(save, lambda: self._take_part(save))
        weights = self.engine.state_dict()
        if self.engine.rank == 0:
            save.writes.append(lambda: self._write_model(weights, save))
        self._save = save
        self._job = self._thread.submit(self._write_files, save)

    def advance(self) -> Path | None:
        """Wait for the phase that every rank's thread is in, and begin the next one.

        Returns:
            The folder of the checkpoint once it is whole.
        Raises:
            CheckpointError: as `begin` does, if a rank could not write its part or rank 0 could not
                publish the whole.
        """
        assert self._save
        save, self._save = self._save, None
        parts = self._on_all_ranks(save, self._job.result)
        if save.is_published:
            return save.folder
        files = {path: entry for part in parts for path, entry in part.items()}
        save.is_published = True
        self._job = self._thread.submit(self._publish, save, files)
        self._save = save
        return None

    def finish(self) -> Path | None:
        """Wait for the save that is under way, if any; returns its folder. See `advance`."""
        if self._save:
            self._save.throttle.hurry()
        folder = None
        while self.is_saving:
            folder = self.advance()
        return folder

    def close(self) -> None:
        """End this rank's thread. What it has not written by then is no checkpoint."""
        self._cancelled.set()
        if self._save:
            self._save.throttle.hurry()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _new_throttle(self) -> Throttle:
        """The throttle of a save that begins now, for the thread that writes."""
        now = time.monotonic()
        seconds, self._last_begin = SPREAD * (now - self._last_begin), now
        return Throttle(self._share, time.thread_time, seconds)

    def _on_all_ranks(self, save: _Save, work: Callable[[], FileEntries]) -> list[FileEntries]:
        """Call a function, then wait for the other ranks to have done so.

        Returns:
            What each rank's function returned, by rank.
        Raises:
            CheckpointError: on every rank, if the function failed on any.
        """
        entries: FileEntries = {}
        error = ""
        try:
            entries = work()
        except (OSError, RuntimeError, SafetensorError) as cause:
            error = _reason(cause)
        results = self.engine.gather([(entries, error)])
        errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(results) if error]
        if errors:
            if self.engine.rank == 0:
                shutil.rmtree(save.temporary, ignore_errors=True)
            self.engine.barrier()
            raise CheckpointError(
                f"the checkpoint of step {save.state.step} could not be written, those before it "
                f"are as they were ({'; '.join(errors)})"
            )
        return [entries for entries, _ in results]

    def _make_folder(self, temporary: Path) -> FileEntries:
        """Create the folder on rank 0, and remove those that interrupted saves left."""
        if self.engine.rank == 0:
            for leftover in temporary.parent.glob(f"{TEMPORARY_PREFIX}*"):
                shutil.rmtree(leftover)
            for leftover in temporary.parent.glob(f"{LATEST_FILE}.*"):
                leftover.unlink()
            temporary.mkdir(parents=True)
        return {}

    def _take_part(self, save: _Save) -> FileEntries:
        """Copy this rank's part of weights and optimizer, or write it where no copy fits."""

        def take(content: dict[str, Any], path: Path) -> None:
            def write(content: dict[str, Any], rest: Callable[[], None]) -> list[Path]:
                write_state_file(content, path, self._cancelled, rest)
                return [path]

            if self.engine.config.train.async_checkpoints and fits_in_memory(content):
                copied = copied_to_memory(content)
                save.writes.append(lambda: write(copied, save.throttle.rest))
            else:
                written = write(content, no_rest)
                save.writes.append(lambda: written)

        self.engine.save(save.temporary, take)
        return {}

    def _write_model(self, weights: dict[str, Any], save: _Save) -> list[Path]:
        """Write the exported model and the state on rank 0, which alone has the weights."""
        model = save.temporary / MODEL_FOLDER
        save_pretrained(weights, self.engine.config.model, model, self.extra)
        return [*sorted(model.iterdir()), write_state(save.temporary, save.state)]

    def _write_files(self, save: _Save) -> FileEntries:
        """Write this rank's files and make them durable; each copy is freed once it is written."""
        rest = save.throttle.rest
        rest()
        written: list[Path] = []
        while save.writes:
            written += save.writes.pop(0)()
            rest()
        return {str(path.relative_to(save.temporary)): file_entry(path, rest) for path in written}

    def _publish(self, save: _Save, files: FileEntries) -> FileEntries:
        """Write the manifest on rank 0, give the folder its name, and remove old checkpoints."""
        if self.engine.rank == 0:
            write_checkpoint_manifest(save.temporary, save.folder.name, files)
            rename_durably(save.temporary, save.folder)
            write_atomic(save.folder.parent / LATEST_FILE, save.folder.name.encode())
            self._remove_old(save.state.step)
        return {}

    def _remove_old(self, step: int) -> None:
        """Remove the checkpoints that are not kept. One that is held goes at a later save."""
        config = self.engine.config.train
        folders = {number: path for number, path in checkpoint_folders(self.run) if number <= step}
        for number in steps_to_remove(folders, config.keep_last, config.keep_every):
            path = folders[number]
            if not self.is_held(path):
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
