"""Where `prepare` makes a set, and where the set stays: a local folder, or the URL of one.

A set for a URL is made in a scratch folder of this machine, shard by shard: each is uploaded while
the next one grows, and then removed here. The folder holds a shard of each split at most, and the
one that is uploaded.

    URL/.prepare*.json       the state, as in a local folder; deleted when the set is complete
    URL/.prepare-owner.json  which prepare writes here (`claim.py`)
    SCRATCH/set/             files that are not uploaded yet
    SCRATCH/owner            the name under which this machine's prepare has claimed the URL
"""

from __future__ import annotations

import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bytelm.pipelines.prepare.claim import CLAIM, Claim
from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.prepare_state import STATE_NAME, PrepareState
from bytelm.pipelines.prepare.report import write_skipped
from bytelm.pipelines.prepare.set_folder import (
    clear_folder,
    held_folder,
    is_own_file,
    locked_folder,
    remove_state,
    resume,
    save_state,
)
from bytelm.pipelines.shards.format import MAX_MANIFEST_BYTES, SET_MANIFEST, Shard
from bytelm.pipelines.shards.reader import ShardSet, open_set
from bytelm.pipelines.shards.writer import write_set_manifest
from bytelm.pipelines.storage.destination import open_destination
from bytelm.pipelines.storage.remote import folder_of, is_remote

SCRATCH_FOLDER = "~/.cache/bytelm/prepare"


class SetTarget(ABC):
    """A set that `prepare` makes."""

    location: str | Path
    folder: Path
    """Local folder in which files are made."""

    @abstractmethod
    def complete_set(self) -> ShardSet | None:
        """The set that is complete already; None where there is none."""

    @abstractmethod
    def is_older(self, newest_ns: int) -> bool:
        """Whether the complete set was made before this time of its sources, in ns. A URL's set
        never is: the times of stores and sources do not compare."""

    @abstractmethod
    def held(self) -> AbstractContextManager[None]:
        """A context manager that holds the target against other prepares; ValueError where it
        holds other things, or another prepare holds it."""

    @abstractmethod
    def resume(self, fingerprint: str) -> PrepareState:
        """The state from which to prepare the input of that fingerprint. The target then holds
        the state's shards and nothing else."""

    @abstractmethod
    def keep_shard(self, shard: Shard) -> Shard:
        """Bring a finished shard from `folder` to where the set stays, and return it."""

    @abstractmethod
    def save_state(self, state: PrepareState) -> None:
        """Store the progress."""

    @abstractmethod
    def clear(self) -> None:
        """Remove everything: the set has no document."""

    @abstractmethod
    def publish(
        self, shards: Sequence[Shard], report: dict[str, Any], skipped: list[SkippedFile]
    ) -> str:
        """Write list and manifest, which make the set complete, and return the root hash."""

    @abstractmethod
    def abandon(self) -> None:
        """End what other threads do for this target: `prepare` has failed or is interrupted."""


def open_target(out: str | Path) -> SetTarget:
    """The target at a path or URL. Raises ValueError for a URL that cannot be written."""
    if isinstance(out, Path):
        return FolderTarget(out)
    return RemoteTarget(out) if is_remote(out) else FolderTarget(folder_of(out))


def local_folder(out: str | os.PathLike[str]) -> Path:
    """The folder at a path or file:// URL. Raises ValueError for any other URL: sets that several
    processes make together are made in a folder."""
    target = open_target(os.fspath(out))
    if isinstance(target, RemoteTarget):
        raise ValueError(
            f"{out}: parts and Ray tasks write to a folder that all machines see; choose one as "
            "--out, or prepare the set in one process"
        )
    return target.folder


class FolderTarget(SetTarget):
    """A local folder, in which the set is made and stays."""

    def __init__(self, folder: Path):
        self.location = self.folder = folder

    def complete_set(self) -> ShardSet | None:
        """See SetTarget."""
        if not (self.folder / SET_MANIFEST).exists():
            return None
        shard_set = ShardSet(self.folder)
        remove_state(self.folder)
        return shard_set

    def is_older(self, newest_ns: int) -> bool:
        """See SetTarget."""
        return (self.folder / SET_MANIFEST).stat().st_mtime_ns < newest_ns

    def held(self) -> AbstractContextManager[None]:
        """See SetTarget."""
        return locked_folder(self.folder)

    def resume(self, fingerprint: str) -> PrepareState:
        """See SetTarget."""
        return resume(self.folder, fingerprint)

    def keep_shard(self, shard: Shard) -> Shard:
        """See SetTarget."""
        return shard

    def save_state(self, state: PrepareState) -> None:
        """See SetTarget."""
        save_state(self.folder, state)

    def clear(self) -> None:
        """See SetTarget."""
        clear_folder(self.folder, keep=[])

    def publish(
        self, shards: Sequence[Shard], report: dict[str, Any], skipped: list[SkippedFile]
    ) -> str:
        """See SetTarget."""
        write_skipped(self.folder, skipped)
        root = write_set_manifest(self.folder, shards, report)
        remove_state(self.folder)
        return root

    def abandon(self) -> None:
        """Do nothing."""


class RemoteTarget(SetTarget):
    """A folder of an object store."""

    def __init__(self, url: str):
        self._destination = open_destination(url)
        self.location = self._destination.location
        try:
            cache = Path(SCRATCH_FOLDER).expanduser()
        except RuntimeError as error:
            raise ValueError(
                f"{url} is remote, and there is no home folder in which its shards could be made: "
                "set HOME"
            ) from error
        self._scratch = cache / hashlib.sha256(self.location.encode()).hexdigest()[:16]
        self.folder = self._scratch / "set"
        self._claim = Claim(self._destination, self._scratch / "owner")

    def complete_set(self) -> ShardSet | None:
        """See SetTarget."""
        if SET_MANIFEST not in self._destination.list():
            return None
        return open_set(self._destination.location)

    def is_older(self, newest_ns: int) -> bool:
        """See SetTarget."""
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """See SetTarget."""
        foreign = [n for n in self._destination.list() if n != CLAIM and not is_own_file(n)]
        if foreign:
            raise ValueError(
                f"{self.location} holds other things ({foreign[0]}): choose an empty place as --out"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with held_folder(self._scratch, f"prepare of {self.location}"), self._claim:
            self._destination.abort_uploads()
            yield
            self._claim.end()
            names = sorted(filter(STATE_NAME.fullmatch, self._destination.list()), key=len)
            self._destination.delete([*names, CLAIM])
        shutil.rmtree(self._scratch, ignore_errors=True)

    def resume(self, fingerprint: str) -> PrepareState:
        """See SetTarget."""
        clear_folder(self.folder, keep=[])
        sizes = self._destination.list()
        state = PrepareState.load(
            lambda name: self._destination.read(name, MAX_MANIFEST_BYTES), fingerprint
        )
        if not all(_is_stored(shard, sizes) for shard in state.shards):
            state = PrepareState(fingerprint)
        kept = {name for shard in state.shards for name in (shard.name, shard.index_name)}
        self.save_state(state)
        self._destination.delete(n for n in sizes if n not in {*kept, *state.file_names, CLAIM})
        return state

    def keep_shard(self, shard: Shard) -> Shard:
        """See SetTarget. The shard is uploaded, and then removed here."""
        for name in (shard.name, shard.index_name):
            self._claim.check()
            self._destination.upload(self.folder / name, name)
            (self.folder / name).unlink()
        return shard

    def save_state(self, state: PrepareState) -> None:
        """See SetTarget."""
        self._claim.check()
        state.save(self._destination.write)

    def clear(self) -> None:
        """See SetTarget."""
        self._destination.delete(n for n in self._destination.list() if n != CLAIM)

    def publish(
        self, shards: Sequence[Shard], report: dict[str, Any], skipped: list[SkippedFile]
    ) -> str:
        """See SetTarget. Raises ValueError where another prepare was faster, or has changed the
        shards."""
        write_skipped(self.folder, skipped)
        root = write_set_manifest(self.folder, shards, report)
        for path in sorted(self.folder.iterdir()):
            if path.name != SET_MANIFEST:
                self._destination.upload(path, path.name)
        sizes = self._destination.list()
        wrong = [shard.name for shard in shards if not _is_stored(shard, sizes)]
        self._claim.check()
        if wrong:
            raise ValueError(f"{self.location}/{wrong[0]} was changed by others: prepare it again")
        try:
            manifest = (self.folder / SET_MANIFEST).read_bytes()
            self._destination.create_last(SET_MANIFEST, manifest)
        except FileExistsError as error:
            raise ValueError(
                f"another prepare has completed {self.location} meanwhile: this one changed nothing"
            ) from error
        return root

    def abandon(self) -> None:
        """See SetTarget."""
        self._destination.close()


def _is_stored(shard: Shard, sizes: dict[str, int]) -> bool:
    """Whether a shard's files are among objects of these sizes."""
    expected = {shard.name: shard.size, shard.index_name: shard.index_size}
    return all(sizes.get(name) == size for name, size in expected.items())
