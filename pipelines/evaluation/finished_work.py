"""Finished work of an evaluation that ended early, kept beside where its result would stand.

RUN/evaluations/.unfinished-IDENTITY/rows-9f2c01d4-3.json    {"units": [[7, 1], ...], "sums": [...]}

An evaluation is some passes over numbered units: batches, groups of documents, documents. Each rank
writes now and then what its units added to the sums. The same command, with any number of ranks,
adds that up and does the other units.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from bytelm.pipelines.runtime.progress import stderr_console
from bytelm.pipelines.runtime.ranks import Ranks
from bytelm.pipelines.storage.files import write_atomic

KEEP_SECONDS = 30.0
"""Time between two files of a rank: the work that a kill costs. Shorter evaluations keep none."""
MOST_DAYS = 7
"""Age from which what other evaluations left is removed."""
_PREFIX = ".unfinished-"


class Sums(Protocol):
    """Sums over the units of a pass."""

    def take(self) -> Any:
        """Return the part that was added since the last call, as plain JSON."""

    def put(self, taken: Any) -> None:
        """Add what `take` returned in an earlier process; `take` does not return it again."""


class FinishedWork:
    """The units that are finished, of an earlier call and of this one, by pass."""

    def __init__(self, evaluations: Path | None, facts: Sequence[object], ranks: Ranks):
        """Find what an earlier call has left. Every rank has to call it.

        Args:
            evaluations: folder of the run's evaluations; None keeps nothing.
            facts: all that decides the units and their sums.
        Raises:
            ValueError: if a file is damaged.
        """
        digest = hashlib.sha256(repr(tuple(facts)).encode()).hexdigest()
        self._folder = evaluations / f"{_PREFIX}{digest[:16]}" if evaluations else None
        self._names = (f"{secrets.token_hex(4)}-{number}.json" for number in itertools.count())
        self._sums: dict[str, list[Any]] = {}
        """On rank 0, which adds them up for all."""
        self._start = time.monotonic()
        self._due = self._start + KEEP_SECONDS
        done = ranks.together(self._read if ranks.rank == 0 else dict)
        self._done: dict[str, dict[int, int]] = ranks.gather(done)[0]

    @contextmanager
    def of_pass(self, name: str, sums: Sequence[Sums]) -> Iterator[FinishedUnits]:
        """The units of a pass. An error in the body can leave a unit half added, so it keeps none.

        Args:
            name: of the pass, without a `-`.
            sums: what its units are added to, to which those of an earlier call are added first.
        """
        for taken in self._sums.pop(name, ()):
            for part, value in zip(sums, taken, strict=True):
                part.put(value)
        units = FinishedUnits(self, name, sums, self._done.get(name, {}))
        yield units
        if time.monotonic() >= self._start + KEEP_SECONDS:
            units.keep()

    def is_due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() >= self._due

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep some units of a pass. Where the folder cannot be written, no more are kept."""
        self._due = time.monotonic() + KEEP_SECONDS
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._folder / f"{name}-{next(self._names)}", json.dumps(content).encode())
        except OSError as error:
            print(f"bytelm evaluate: finished work is not kept: {error}", file=sys.stderr)
            self._folder = None

    def end(self) -> None:
        """Forget all, since the evaluation is complete. One rank calls it."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> dict[str, dict[int, int]]:
        """The sizes of finished units, by pass and number; their sums stay here."""
        done: dict[str, dict[int, int]] = {}
        if self._folder is None:
            return done
        _remove_old(self._folder)
        for path in sorted(self._folder.glob("*.json")):
            try:
                content = json.loads(path.read_bytes())
                units, sums = dict(content["units"]), content["sums"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}): remove it, and evaluate again"
                ) from error
            name = path.name.partition("-")[0]
            done.setdefault(name, {}).update(units)
            self._sums.setdefault(name, []).append(sums)
        if done:
            stderr_console().print(
                "an evaluation that did not end goes on: "
                + ", ".join(f"{len(units):,} parts of {name!r}" for name, units in done.items()),
                highlight=False,
            )
        return done


class FinishedUnits:
    """The units of one pass that are finished."""

    def __init__(
        self, work: FinishedWork, name: str, sums: Sequence[Sums], done: Mapping[int, int]
    ):
        self.done = done
        """Sizes of those of an earlier call, by number."""
        self._work = work
        self._name = name
        self._sums = sums
        self._new: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        """Size of all units of an earlier call together, as a progress counts them."""
        return sum(self.done.values())

    def add(self, number: int, size: int) -> None:
        """Note that a unit is finished and that its sums are added; write if it is time."""
        self._new.append((number, size))
        if self._work.is_due():
            self.keep()

    def keep(self) -> None:
        """Write what is finished and not written."""
        if self._new:
            content = {"units": self._new, "sums": [part.take() for part in self._sums]}
            self._work.write(self._name, content)
            self._new = []


def _remove_old(folder: Path) -> None:
    """Remove what other evaluations left beside a folder long ago, so that it does not pile up."""
    oldest = time.time() - MOST_DAYS * 86_400
    for other in folder.parent.glob(f"{_PREFIX}*"):
        if other != folder and other.stat().st_mtime < oldest:
            shutil.rmtree(other, ignore_errors=True)
