"""The folder of a set while `prepare` makes it: held by one process, and resumed after a stop."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bytelm.pipelines.prepare.prepare_state import PREPARE_STATE, STATE_NAME, PrepareState
from bytelm.pipelines.shards.format import SET_MANIFEST, SPLITS, Shard
from bytelm.pipelines.storage.files import write_atomic

PARTS_FOLDER = ".parts"
"""Holds what the parts of a set have decoded, until they are merged."""
SKIPPED_LIST = "skipped.jsonl"
"""Names all skipped files, where there are too many for the manifest."""

_OWN_FILE = re.compile(
    rf"(({'|'.join(SPLITS)})-\d{{6}}\.(tar|npy)|{re.escape(SET_MANIFEST)}|"
    rf"manifest-[0-9a-f]{{16}}\.npy|counts-[0-9a-f]{{16}}-[0-9a-f]{{16}}\.npy|"
    rf"{STATE_NAME.pattern}|{re.escape(SKIPPED_LIST)})((\.\d+)?\.tmp)?"
)


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


def save_state(out: Path, state: PrepareState) -> None:
    """Write the state of the set in `out`."""
    state.save(lambda name, data: write_atomic(out / name, data))


def load_state(out: Path, fingerprint: str) -> PrepareState:
    """The state of an interrupted prepare of the same input whose shards are whole, or that of a
    fresh start."""
    try:
        state = PrepareState.load(lambda name: (out / name).read_bytes(), fingerprint)
    except OSError:
        return PrepareState(fingerprint)
    return state if all(is_whole(out, s) for s in state.shards) else PrepareState(fingerprint)


def remove_state(out: Path) -> None:
    """Remove the state, whose own file goes first, without which the others are none."""
    for name in sorted(filter(STATE_NAME.fullmatch, os.listdir(out)), key=len):
        (out / name).unlink()


def resume(out: Path, fingerprint: str) -> PrepareState:
    """The state from which to prepare the input of that fingerprint. The folder then holds the
    state's shards and nothing else."""
    state = load_state(out, fingerprint)
    clear_folder(out, keep=state.shards)
    save_state(out, state)
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
