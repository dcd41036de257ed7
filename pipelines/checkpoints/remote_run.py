"""A run's checkpoints at an object store, which has the files of the run's folder by their names.

    URL/config.json                                 the run's config
    URL/checkpoints/step-00000100/...               the files of a checkpoint
    URL/checkpoints/step-00000100/manifest.json     written last: without it there is no checkpoint

One thread uploads one checkpoint at a time, at a low priority, so that steps which use all
cores of a machine go first. If a newer one is offered meanwhile, it waits; if one waits already,
the newer one takes its place.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytelm.pipelines.checkpoints.manifest import (
    CHECKPOINT_MANIFEST,
    FormatError,
    checkpoint_damage,
    checkpoint_files,
)
from bytelm.pipelines.checkpoints.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    TEMPORARY_PREFIX,
    checkpoint_folders,
    checkpoint_name,
    damage_outside_tensors,
    parse_config,
    steps_to_remove,
)
from bytelm.pipelines.storage.background import NICENESS, lower_priority
from bytelm.pipelines.storage.cache import StoreClosedError
from bytelm.pipelines.storage.destination import Destination, open_destination
from bytelm.pipelines.storage.files import rename_durably

MAX_MANIFEST_BYTES = 1 << 26
_log = logging.getLogger(__name__)
_MANIFEST_NAME = re.compile(rf"{CHECKPOINTS_FOLDER}/step-(\d{{8,}})/{CHECKPOINT_MANIFEST}")


@dataclass(frozen=True)
class Upload:
    """The end of an upload."""

    name: str
    """The checkpoint's folder name."""
    seconds: float
    size: int
    """Bytes of its files."""
    passed_over: int
    """Checkpoints so far that were not uploaded, since a newer one was there first."""
    error: str
    """Why it failed; empty if it is whole in the store."""


class CheckpointUploads:
    """Uploads the checkpoints of a run from a thread, and removes old ones in the store."""

    def __init__(self, url: str, run: Path, keep_last: int, keep_every: int):
        """Raises ValueError for a URL to which nothing can be written."""
        self._destination = open_destination(url, in_background=True)
        self._run = run
        self._keep = keep_last, keep_every
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._uploading: Path | None = None
        self._passed_over = 0
        self._ended: list[Upload] = []
        self._is_closed = False
        self._is_tidy = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="uploads")
        self._thread.start()

    def offer(self, folder: Path) -> None:
        """Have a whole checkpoint uploaded, in place of an older one that still waits."""
        with self._changed:
            self._passed_over += self._waiting is not None
            self._waiting = folder
            self._changed.notify_all()

    def is_held(self, folder: Path) -> bool:
        """Return whether a checkpoint's folder is read, or will be, and so has to stay."""
        return folder in (self._uploading, self._waiting)

    def ended(self) -> list[Upload]:
        """Return the uploads that have ended since the last call."""
        with self._changed:
            ended, self._ended = self._ended, []
            return ended

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being uploaded."""
        with self._changed:
            return self._waiting is None and self._uploading is None

    def close(self) -> None:
        """Break off what is under way; what is not whole in the store by then is no checkpoint."""
        with self._changed:
            self._is_closed = True
            self._waiting = None
            self._changed.notify_all()
        self._destination.close()
        self._thread.join()

    def _work(self) -> None:
        lower_priority(NICENESS)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._is_closed)
                if self._is_closed:
                    return
                self._uploading, self._waiting = self._waiting, None
            assert self._uploading
            start, size, error = time.monotonic(), 0, ""
            try:
                size = self._upload(self._uploading)
            except StoreClosedError:
                return
            except (OSError, ValueError) as cause:
                error = " ".join(str(cause).split())
            seconds = time.monotonic() - start
            with self._changed:
                name = self._uploading.name
                self._ended.append(Upload(name, seconds, size, self._passed_over, error))
                self._uploading = None

    def _upload(self, folder: Path) -> int:
        """Upload a checkpoint, its manifest last; then remove old ones. Returns its bytes, 0 if
        it is in the store already."""
        store, top = self._destination, f"{CHECKPOINTS_FOLDER}/{folder.name}"
        files = checkpoint_files(folder)
        if self._is_stored(folder):
            return 0
        self._abort_earlier()
        store.delete([f"{top}/{CHECKPOINT_MANIFEST}"])
        store.write(CONFIG_FILE, (self._run / CONFIG_FILE).read_bytes())
        for path in files:
            store.upload(folder / path, f"{top}/{path}")
        store.upload(folder / CHECKPOINT_MANIFEST, f"{top}/{CHECKPOINT_MANIFEST}")
        self._remove_old(int(folder.name.removeprefix("step-")))
        return sum(entry["size"] for entry in files.values())

    def _abort_earlier(self) -> None:
        """Have the store forget, once, what killed processes of this run had sent of their files.
        A store that refuses to tell of it keeps it, and the checkpoints are uploaded all the same.
        """
        if self._is_tidy:
            return
        self._is_tidy = True
        try:
            self._destination.abort_uploads()
        except OSError as error:
            _log.warning("parts of interrupted uploads may stay in the store: %s", error)

    def _is_stored(self, folder: Path) -> bool:
        """Whether the store has this checkpoint, whole."""
        manifest = (folder / CHECKPOINT_MANIFEST).read_bytes()
        name = f"{CHECKPOINTS_FOLDER}/{folder.name}/{CHECKPOINT_MANIFEST}"
        try:
            return self._destination.read(name, MAX_MANIFEST_BYTES) == manifest
        except FileNotFoundError:
            return False

    def _remove_old(self, newest: int) -> None:
        """Remove the checkpoints up to a step that are not kept, and parts of interrupted ones."""
        objects = self._destination.list(CHECKPOINTS_FOLDER)
        whole = [step for step in _steps(objects) if step <= newest]
        kept = set(whole) - set(steps_to_remove(whole, *self._keep))
        for step in sorted({_step_of(name) for name in objects} - kept):
            if 0 <= step <= newest:
                folder = f"{CHECKPOINTS_FOLDER}/{checkpoint_name(step)}/"
                names = [name for name in objects if name.startswith(folder)]
                # The manifest goes first: what is left without it is no checkpoint.
                names.sort(key=lambda name: not name.endswith(f"/{CHECKPOINT_MANIFEST}"))
                self._destination.delete(names)


def check_unused(url: str) -> None:
    """Raise ValueError if a URL has checkpoints, which a new run must not mix with its own."""
    with open_destination(url) as store:
        if steps := stored_steps(store):
            raise ValueError(
                f"{url} has checkpoints, up to step {steps[0]}: continue with --resume, or choose "
                "another train.checkpoint_url"
            )


def fetch_config(url: str) -> dict[str, Any]:
    """Read the config that a run at a URL was last trained with.

    Raises:
        ValueError: for a URL that cannot be used or has no such config.
        OSError: if the store fails.
    """
    with open_destination(url) as store:
        try:
            values = parse_config(store.read(CONFIG_FILE, MAX_MANIFEST_BYTES))
        except FileNotFoundError:
            values = None
    if values is None:
        raise ValueError(f"{url} has no {CONFIG_FILE} of a run: name its CONFIG, or another URL")
    return values


def stored_steps(store: Destination) -> list[int]:
    """Return the steps of the checkpoints that a store has a manifest of, newest first."""
    return _steps(store.list(CHECKPOINTS_FOLDER))


def fetch_newest(url: str, run: Path) -> list[str]:
    """Fetch the newest whole checkpoint of a URL to a run's folder, if the folder has none as new.

    Returns:
        A line for each checkpoint that was fetched, or is damaged in the store.
    Raises:
        ValueError: for a URL that cannot be used.
        OSError: if the store fails.
    """
    local = next(
        (step for step, path in checkpoint_folders(run) if not damage_outside_tensors(path)), -1
    )
    lines = []
    with open_destination(url) as store:
        for step in stored_steps(store):
            if step <= local:
                break
            damage = _fetch(store, run, checkpoint_name(step))
            lines.append(f"{checkpoint_name(step)} of {url}: {damage or 'fetched'}")
            if not damage:
                break
    return lines


def _fetch(store: Destination, run: Path, name: str) -> str | None:
    """Fetch a checkpoint, which gets its name once it agrees with its manifest; otherwise return
    what is wrong with it."""
    folder = run / CHECKPOINTS_FOLDER / name
    parent = run / CHECKPOINTS_FOLDER / f"{TEMPORARY_PREFIX}-fetched"
    shutil.rmtree(parent, ignore_errors=True)
    fetched = parent / name  # the manifest has the folder's name
    fetched.mkdir(parents=True)
    try:
        path = f"{CHECKPOINTS_FOLDER}/{name}/{CHECKPOINT_MANIFEST}"
        (fetched / CHECKPOINT_MANIFEST).write_bytes(store.read(path, MAX_MANIFEST_BYTES))
        try:
            paths = checkpoint_files(fetched)
        except FormatError:
            raise
        except ValueError as error:
            return str(error)
        for path in paths:
            (fetched / path).parent.mkdir(parents=True, exist_ok=True)
            store.download(f"{CHECKPOINTS_FOLDER}/{name}/{path}", fetched / path)
        if damage := checkpoint_damage(fetched, lambda path: True):
            return damage
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one of this step
        rename_durably(fetched, folder)
        return None
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _steps(objects: dict[str, int]) -> list[int]:
    """Steps of the checkpoints that have a manifest, newest first."""
    matches = map(_MANIFEST_NAME.fullmatch, objects)
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def _step_of(name: str) -> int:
    """The step of the checkpoint that an object belongs to; -1 for another object."""
    parts = name.split("/")
    step = parts[1].removeprefix("step-") if len(parts) > 2 else ""
    return int(step) if step.isdecimal() else -1
