"""Repeated attempts at remote requests: how many, how long between them, and when to give up."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Callable
from typing import TypeVar

from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.storage.cache import StoreClosedError
from bytelm.pipelines.storage.clients import TransientError

ATTEMPTS = 8
BACKOFF_SECONDS = 0.5
"""Before the second attempt; it doubles with each further one. Up to half is cut at random."""
MAX_BACKOFF_SECONDS = 30.0

_log = logging.getLogger(__name__)
T = TypeVar("T")


def retry(
    url: str,
    action: Callable[[], T],
    stop: threading.Event,
    count_retry: Callable[[], object] = lambda: None,
) -> T:
    """Return what `action` returns. It has ATTEMPTS where it raises TransientError, and two where
    it raises DamageError.

    Args:
        url: names the object in log lines and errors.
        action: one attempt.
        stop: ends the waits between attempts once it is set.
        count_retry: called before each further attempt.
    Raises:
        StoreClosedError: after `stop` was set.
        Exception: the `final` error of the last TransientError, and whatever else `action` raises.
    """
    delay, was_damaged = BACKOFF_SECONDS, False
    for attempt in itertools.count(1):
        try:
            return action()
        except TransientError as error:
            if attempt >= ATTEMPTS:
                raise error.final(f"{url}: {error} ({attempt} attempts)") from error
            _log.warning("%s: %s; trying again", url, error)
        except DamageError as error:
            if was_damaged:
                raise
            was_damaged = True
            _log.warning("%s; trying again", error)
        count_retry()
        if stop.wait(delay * random.uniform(0.5, 1.0)):
            raise StoreClosedError
        delay = min(2 * delay, MAX_BACKOFF_SECONDS)
    raise AssertionError("unreachable")
