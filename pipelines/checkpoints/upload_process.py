"""The process that uploads a run's checkpoints, with idle priority; see `uploads.py`.

It is small, since it imports no PyTorch, and has neither the interpreter's lock of the training nor
a thread of it: nothing that a step waits for is held while the process is off the processor.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from bytelm.pipelines.checkpoints.manifest import CHECKPOINT_MANIFEST, checkpoint_files
from bytelm.pipelines.checkpoints.remote_run import MAX_MANIFEST_BYTES, steps_with_manifest
from bytelm.pipelines.checkpoints.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    checkpoint_name,
    steps_to_remove,
)
from bytelm.pipelines.storage.background import Throttle, run_when_idle
from bytelm.pipelines.storage.destination import Destination, open_destination

PARENT_SECONDS = 0.5
"""Time after which the process ends at the latest, once its parent was killed."""
HURRY = "hurry"
"""Asks for the rest of the upload that is under way, if any, without rests."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UploadSettings:
    """Where checkpoints are uploaded to, and which of them stay there."""

    url: str
    run: Path
    keep_last: int
    keep_every: int
    parent: int
    """Process id of the run, with which the uploads end."""


@dataclass(frozen=True)
class Job:
    """A checkpoint to be uploaded."""

    folder: Path
    share: float
    """Share of one core that the upload takes; see `Throttle`."""


@dataclass(frozen=True)
class Answer:
    """The end of the upload of one checkpoint."""

    seconds: float
    size: int
    """Bytes of its files; 0 if it was in the store already."""
    error: str
    """Why it failed; empty if it is whole in the store."""


class Uploader:
    """Uploads checkpoints to one store."""

    def __init__(self, settings: UploadSettings):
        """Open the destination; raises ValueError for a URL to which nothing can be written."""
        self._settings = settings
        self._destination: Destination = open_destination(settings.url)
        self._is_tidy = False

    def upload(self, folder: Path, rest: Callable[[], None]) -> int:
        """Upload a checkpoint, its manifest last, and then remove old ones.

        Args:
            folder: the checkpoint's.
            rest: called before each file.
        Returns:
            Bytes of its files; 0 if it is in the store already.
        Raises:
            ValueError: if its manifest is damaged.
            OSError: if a file cannot be read, or the store fails.
        """
        store, top = self._destination, f"{CHECKPOINTS_FOLDER}/{folder.name}"
        files = checkpoint_files(folder)
        if self._is_stored(folder):
            return 0
        self._abort_earlier()
        store.delete([f"{top}/{CHECKPOINT_MANIFEST}"])
        store.write(CONFIG_FILE, (self._settings.run / CONFIG_FILE).read_bytes())
        for path in files:
            rest()
            store.upload(folder / path, f"{top}/{path}")
        rest()
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
        whole = [step for step in steps_with_manifest(objects) if step <= newest]
        removed = steps_to_remove(whole, self._settings.keep_last, self._settings.keep_every)
        kept = set(whole) - set(removed)
        for step in sorted({_step_of(name) for name in objects} - kept):
            if 0 <= step <= newest:
                folder = f"{CHECKPOINTS_FOLDER}/{checkpoint_name(step)}/"
                names = [name for name in objects if name.startswith(folder)]
                # The manifest goes first: what is left without it is no checkpoint.
                names.sort(key=lambda name: not name.endswith(f"/{CHECKPOINT_MANIFEST}"))
                self._destination.delete(names)


def main() -> None:
    """Upload the checkpoints that the parent names, until it closes the connection or ends.

    The argument is the descriptor of the connection, through which come `UploadSettings` and then
    a `Job` each time; `HURRY` may follow it. An `Answer` to each job goes back.
    """
    connection = Connection(int(sys.argv[1]))
    settings: UploadSettings = connection.recv()
    jobs: SimpleQueue[tuple[Path, Throttle]] = SimpleQueue()
    arguments = (connection, settings.parent, jobs)
    threading.Thread(target=_receive, args=arguments, daemon=True).start()
    uploader = None
    with suppress(ValueError):  # told in the answers
        # The client of the store is imported before the first step of the run, and quickly.
        uploader = Uploader(settings)
    run_when_idle()
    while True:
        folder, throttle = jobs.get()
        start, size, error = time.monotonic(), 0, ""
        try:
            uploader = uploader or Uploader(settings)
            size = uploader.upload(folder, throttle.rest)
        except (OSError, ValueError) as cause:
            error = " ".join(str(cause).split())
        connection.send(Answer(time.monotonic() - start, size, error))


def _receive(connection: Connection, parent: int, jobs: SimpleQueue[tuple[Path, Throttle]]) -> None:
    """Queue what the parent sends, and end the process with the parent. The pipe alone does not
    tell of its end: other processes that it forked hold it, too."""
    throttle: Throttle | None = None
    with suppress(EOFError, OSError):
        while os.getppid() == parent:
            if not connection.poll(PARENT_SECONDS):
                continue
            message: Job | str = connection.recv()
            if isinstance(message, Job):
                # Made here, so that no request to hurry comes before it.
                throttle = Throttle(message.share, time.process_time)
                jobs.put((message.folder, throttle))
            elif throttle:
                throttle.hurry()
    os._exit(0)


def _step_of(name: str) -> int:
    """The step of the checkpoint that an object belongs to; -1 for another object."""
    parts = name.split("/")
    step = parts[1].removeprefix("step-") if len(parts) > 2 else ""
    return int(step) if step.isdecimal() else -1
