"""The folder of a set while `prepare` makes it: held by one process, and resumed after a stop.

SET/.prepare.json    the state, saved with each finished shard; removed when the set is complete
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.table_progress import TableProgress
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.shards.format import SET_MANIFEST, SPLITS, Shard
from bytelm.pipelines.storage.files import write_atomic

PREPARE_STATE = ".prepare.json"
PARTS_FOLDER = ".parts"
"""Holds what the parts of a set have decoded, until they are merged."""
SKIPPED_LIST = "skipped.jsonl"
"""Names all skipped files, where there are too many for the manifest."""

_OWN_FILE = re.compile(
    rf"(({'|'.join(SPLITS)})-\d{{6}}\.(tar|npy)|{re.escape(SET_MANIFEST)}|"
    rf"manifest-[0-9a-f]{{16}}\.npy|counts-[0-9a-f]{{16}}-[0-9a-f]{{16}}\.npy|"
    rf"{re.escape(PREPARE_STATE)}|{re.escape(SKIPPED_LIST)})((\.\d+)?\.tmp)?"
)


@dataclass
class PrepareState:
    """Progress of `prepare`: the content of the state file, whose keys are these field names."""

    fingerprint: str
    """Identifies the input."""
    done: int = 0
    """Documents that lie in `shards`, or gave nothing."""
    shards: list[Shard] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    """Counts over the documents in `shards`."""
    tables: TableProgress = field(default_factory=TableProgress)

    def save(self, out: Path) -> None:
        """Write the state file of the set in `out`."""
        write_atomic(out / PREPARE_STATE, self.to_json())

    def to_json(self) -> bytes:
        """The content of the state file."""
        return json.dumps(asdict(self)).encode("utf-8", "surrogatepass")

    @classmethod
    def from_json(cls, data: bytes, fingerprint: str) -> PrepareState:
        """The state in a state file of the same input, or that of a fresh start."""
        try:
            values = json.loads(data)
            state = cls(
                fingerprint=values["fingerprint"],
                done=values["done"],
                shards=[Shard(**s) for s in values["shards"]],
                skipped=[SkippedFile(**s) for s in values["skipped"]],
                tables=TableProgress.from_json(values["tables"]),
                tally=Tally(**values["tally"]),
            )
        except (ValueError, KeyError, TypeError):
            return cls(fingerprint)
        return state if state.fingerprint == fingerprint else cls(fingerprint)

    @classmethod
    def load(cls, out: Path, fingerprint: str) -> PrepareState:
        """The state of an interrupted prepare of the same input whose shards are whole, or that of
        a fresh start."""
        try:
            data = (out / PREPARE_STATE).read_bytes()
        except OSError:
            return cls(fingerprint)
        state = cls.from_json(data, fingerprint)
        return state if all(is_whole(out, s) for s in state.shards) else cls(fingerprint)


def is_own_file(name: str) -> bool:
    """Whether `prepare` gives files of a set this name."""
    return _OWN_FILE.fullmatch(name) is not None


@contextmanager
def locked_folder(out: Path) -> Iterator[None]:
    """Create the set's folder where it is missing, and hold it against other prepares.

    Raises ValueError where it holds other things or another prepare holds it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no folder: choose another --out")
    if (out / PARTS_FOLDER).exists():
        raise ValueError(f"{out} holds parts of a set: run bytelm merge {out}, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(p.name for p in out.iterdir())
    foreign = [name for name in names if not is_own_file(name)]
    is_unfinished = any(name.startswith(PREPARE_STATE) for name in names)
    if foreign or (names and not is_unfinished):
        name = foreign[0] if foreign else names[0]
        raise ValueError(f"{out} holds other things ({name}): choose an empty folder as --out")
    with held_folder(out, f"prepare of {out}"):
        yield


@contextmanager
def held_folder(path: Path, name: str, *, is_shared: bool = False) -> Iterator[None]:
    """Hold a folder, or a file that is created where it is missing, against other processes.

    Args:
        path: what is held.
        name: describes the work, for the ValueError where another process does it.
        is_shared: others may hold it too, but nobody alone.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another {name} is running: wait for it to end") from error
        yield
    finally:
        os.close(descriptor)


def open_parts_folder(out: Path) -> None:
    """Create the folders of a set in parts where they are missing.

    Raises ValueError where `out` holds other things.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no folder: choose another --out")
    if not (out / PARTS_FOLDER).is_dir() and out.exists():
        names = sorted(p.name for p in out.iterdir() if p.name != PARTS_FOLDER)
        if names:
            raise ValueError(
                f"{out} holds other things ({names[0]}): choose an empty folder as --out"
            )
    (out / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)


def resume(out: Path, fingerprint: str) -> PrepareState:
    """The state from which to prepare the input of that fingerprint. The folder then holds the
    state's shards and nothing else."""
    state = PrepareState.load(out, fingerprint)
    clear_folder(out, keep=state.shards)
    state.save(out)
    return state


def clear_folder(out: Path, keep: Sequence[Shard]) -> None:
    """Remove everything in the set's folder but the files of finished shards."""
    kept_names = {name for shard in keep for name in (shard.name, shard.index_name)}
    for path in out.iterdir():
        if path.name not in kept_names:
            path.unlink()


def is_whole(out: Path, shard: Shard) -> bool:
    """Whether a finished shard still has its tar of the same size, and its index."""
    tar, index = out / shard.name, out / shard.index_name
    if not tar.is_file() or tar.stat().st_size != shard.size or not index.is_file():
        return False
    return hashlib.sha256(index.read_bytes()).hexdigest() == shard.index_sha256
