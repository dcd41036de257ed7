"""The claim of one `prepare` on the URL where it writes a set.

An object store has no locks. The claim is an object with the writer's name and a count that a
thread raises every BEAT_SECONDS. Who finds another's claim waits TAKE_OVER_SECONDS: a count that
stands still was left by a dead writer, and the claim is taken over. No clocks are compared. A
writer that was cut off for so long finds another's name in the claim and stops.

The Hugging Face hub would make a commit of each beat: there the count stands still, and a claim
tells two writers apart only at the end.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from pathlib import Path

from bytelm.pipelines.storage.cache import StoreClosedError
from bytelm.pipelines.storage.destination import Destination
from bytelm.pipelines.storage.files import write_atomic

CLAIM = ".prepare-owner.json"
BEAT_SECONDS = 5.0
TAKE_OVER_SECONDS = 20.0
_MAX_CLAIM_BYTES = 1 << 16

_log = logging.getLogger(__name__)


class Claim:
    """The right to write at a destination, held by the body of a `with`."""

    def __init__(self, destination: Destination, owner_file: Path):
        """`owner_file` keeps the writer's name on this machine, where a prepare that is started
        again takes the claim of its dead predecessor at once."""
        self._destination = destination
        self._owner_file = owner_file
        self._owner = ""
        self._beat = 0
        self._is_lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Claim:
        """Raises ValueError where another prepare holds the claim."""
        if not self._owner_file.exists():
            write_atomic(self._owner_file, uuid.uuid4().hex.encode())
        self._owner = self._owner_file.read_text()
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def end(self) -> None:
        """Raise the count no more, so that the claim can be deleted and does not come back."""
        self._stop.set()
        self._thread.join(TAKE_OVER_SECONDS)

    def check(self) -> None:
        """Raise ValueError where another prepare has taken the claim."""
        if self._is_lost:
            raise self._refusal("has taken over")

    def _take(self) -> None:
        """Make the claim, or take over that of a dead writer."""
        found = self._read()
        if found is None:
            try:
                self._destination.create_last(CLAIM, self._content())
            except FileExistsError as error:
                raise self._refusal("has just begun to write") from error
            return
        if json.loads(found)["owner"] != self._owner:
            _log.warning(
                "%s was begun by another prepare: waiting %.0f seconds to see whether it is alive",
                self._destination.location,
                TAKE_OVER_SECONDS,
            )
            self._stop.wait(TAKE_OVER_SECONDS)
            if self._read() != found:
                raise self._refusal("is writing")
        self._destination.write(CLAIM, self._content())

    def _keep(self) -> None:
        """Raise the count until the claim is given up; runs in the thread."""
        is_hub = self._destination.location.startswith("hf:")
        while not self._stop.wait(BEAT_SECONDS):
            try:
                found = self._read()
                if found is not None and json.loads(found)["owner"] != self._owner:
                    self._is_lost = True
                    return
                if not is_hub and not self._stop.is_set():
                    self._beat += 1
                    self._destination.write(CLAIM, self._content())
            except StoreClosedError:
                return
            except OSError as error:
                _log.warning("the claim on %s: %s", self._destination.location, error)

    def _read(self) -> bytes | None:
        try:
            return self._destination.read(CLAIM, _MAX_CLAIM_BYTES)
        except FileNotFoundError:
            return None

    def _content(self) -> bytes:
        return json.dumps({"owner": self._owner, "beat": self._beat}).encode()

    def _refusal(self, state: str) -> ValueError:
        return ValueError(
            f"another prepare {state} {self._destination.location}: wait for it to end, or choose "
            "another --out"
        )
