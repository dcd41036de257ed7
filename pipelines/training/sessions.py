"""The record of a run's sessions: when each one ran, by which command, versions and machine.

    RUN/environment.json    {"format": 1, "sessions": [{"started": ..., "ended": ..., ...}]}

A run that is resumed has several sessions. One that was killed has no end.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bytelm.pipelines.runtime import environment
from bytelm.pipelines.storage.files import write_atomic

ENVIRONMENT_FILE = "environment.json"
ENVIRONMENT_FORMAT = 1


def read_sessions(run: Path) -> list[dict[str, Any]]:
    """The sessions of a run, oldest first; none if it has no record that can be read."""
    try:
        values = json.loads((run / ENVIRONMENT_FILE).read_bytes())
        sessions = values["sessions"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [s for s in sessions if isinstance(s, dict)] if isinstance(sessions, list) else []


@contextmanager
def recorded_session(run: Path, step: Callable[[], int], **facts: Any) -> Iterator[None]:
    """Record a session of a run: at once what it is, and at its end when and where it ended.

    Args:
        step: returns the number of steps that are done.
        facts: further plain values, as the number of ranks.
    """
    session: dict[str, Any] = {
        "started": _now(),
        "ended": None,
        "first_step": step(),
        "last_step": None,
        "command": shlex.join(["bytelm", *sys.argv[1:]]),
        **facts,
        "commit": environment.commit(),
        "versions": environment.versions(),
        "machine": environment.machine(),
        "peak_memory": None,
    }
    sessions = [*read_sessions(run), session]
    _write(run, sessions)
    try:
        yield
    finally:
        session.update(ended=_now(), last_step=step(), peak_memory=environment.peak_memory())
        with suppress(OSError):  # a full disk: the run's own error or checkpoint counts
            _write(run, sessions)


def _write(run: Path, sessions: list[dict[str, Any]]) -> None:
    values = {"format": ENVIRONMENT_FORMAT, "sessions": sessions}
    write_atomic(run / ENVIRONMENT_FILE, json.dumps(values, indent=1).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
