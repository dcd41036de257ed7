"""Background threads that fetch blobs ahead of their use, for `remote.py`."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.cache import CacheFullError, StoreClosedError

PREFETCH_THREADS = 2
ROOM_POLL_SECONDS = 1.0
CLOSE_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Prefetcher:
    """A queue of blobs and the threads that fetch them. The first request starts the threads."""

    def __init__(self, fetch: Callable[[Blob], None], stop: threading.Event):
        """`fetch` raises CacheFullError where the cache has no room, and StoreClosedError once
        `stop` is set."""
        self._fetch = fetch
        self._stop = stop
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._queue: deque[Blob] = deque()
        self._upcoming: set[str] = set()

    def request(self, blobs: Sequence[Blob]) -> None:
        """Fetch blobs in this order, in place of those queued before."""
        with self._changed:
            self._queue = deque(blobs)
            self._upcoming = {blob.sha256 for blob in blobs}
            self._changed.notify_all()
        while blobs and len(self._threads) < PREFETCH_THREADS:
            thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def upcoming(self) -> frozenset[str]:
        """SHA-256 of the requested blobs that were not used yet."""
        with self._changed:
            return frozenset(self._upcoming)

    def mark_used(self, blob: Blob) -> None:
        """Take a blob off the upcoming ones."""
        with self._changed:
            self._upcoming.discard(blob.sha256)

    def room_changed(self) -> None:
        """Wake threads that wait for room in the cache."""
        with self._changed:
            self._changed.notify_all()

    def join(self) -> None:
        """Wait a moment for the threads, once `stop` is set. One that waits for the network ends
        by itself after its time-out."""
        self.room_changed()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                if not self._queue:
                    self._changed.wait()
                    continue
                queue = self._queue
                blob = queue.popleft()
            try:
                self._fetch(blob)
            except CacheFullError:
                with self._changed:
                    queue.appendleft(blob)  # a later request has a queue of its own
                    self._changed.wait(ROOM_POLL_SECONDS)
            except StoreClosedError:
                return
            except (ValueError, OSError) as error:
                _log.info("not fetched ahead of use: %s", error)
