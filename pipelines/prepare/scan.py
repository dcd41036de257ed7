"""The files of `prepare`'s sources, listed without decoding: folders, single files, and tars."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from bytelm.pipelines.prepare.documents import SkippedFile, make_key
from bytelm.pipelines.prepare.webdataset_tars import is_tar, read_webdataset_tar
from bytelm.pipelines.shards.format import SPLITS


class SourceFile(NamedTuple):
    """A file, or a member of a tar, that may become a part of a document."""

    name: str
    """Relative to its source; of a member, `TAR/MEMBER`."""
    stem: str
    """The name without its suffix, which files of one document share."""
    key: str
    path: str
    modality: str | None
    """None where the first bytes are yet to tell."""
    size: int
    split: str | None
    """The split whose folder the file lies in; None where no folder of its source says it."""
    offset: int | None = None
    """Position of a member's first byte in the tar at `path`."""
    caption: str | None = None
    """From a JSON member of the same key in the tar."""


class SourceScan:
    """Lists the files of sources, and collects what it skips and what identifies the input."""

    def __init__(self, captions_file: Path | None, max_file_bytes: int, out: Path):
        """
        Args:
            captions_file: is no source file where it lies in a source.
            max_file_bytes: larger files are skipped.
            out: folder of the set, which is no source where it lies in one.
        """
        self.skipped: list[SkippedFile] = []
        self.files = 0
        """Files and members seen."""
        self.newest_ns = 0
        """The latest modification time of a file."""
        self._captions_path = str(captions_file.absolute()) if captions_file else None
        self._max_file_bytes = max_file_bytes
        self._out = str(out.absolute())
        self._names, self._times = hashlib.sha256(), hashlib.sha256()

    @property
    def names_hash(self) -> str:
        """SHA-256 over every file's name and size."""
        return self._names.hexdigest()

    @property
    def times_hash(self) -> str:
        """SHA-256 over every file's name, size and modification time."""
        return self._times.hexdigest()

    def list_files(self, source: Path) -> list[SourceFile]:
        """The files of a source that may become parts of documents."""
        has_split_folders = (source / SPLITS[0]).is_dir()
        files: list[SourceFile] = []
        for path, name in self._walk(source):
            if path == self._captions_path:
                continue
            self.files += 1
            size = self._record(path, name)
            if size is None:
                continue
            split = _folder_split(name) if has_split_folders else None
            if is_tar(name):
                files += self._tar_files(path, name, split)
            elif self._has_good_size(name, size):
                stem = _stem(name)
                files.append(SourceFile(name, stem, make_key(stem), path, None, size, split))
        return files

    def _skip(self, name: str, reason: str, detail: str) -> None:
        self.skipped.append(SkippedFile(name, reason, detail))

    def _walk(self, source: Path) -> Iterator[tuple[str, str]]:
        """Absolute path and relative name of every file of a source, in sorted order. Hidden files
        and links to folders are left out."""
        top = str(source.absolute())
        if not source.is_dir():
            yield top, source.name
            return
        folders = [(top, "")]  # path and name prefix, the next folder last
        while folders:
            folder, prefix = folders.pop()
            subfolders = []
            for entry in self._entries(folder, prefix):
                name = prefix + entry.name
                if not _is_folder(entry):
                    yield entry.path, name
                elif entry.is_symlink():
                    self._skip(name, "link", "a link to a folder")
                elif entry.path != self._out:
                    subfolders.append((entry.path, f"{name}/"))
            folders += reversed(subfolders)

    def _entries(self, folder: str, prefix: str) -> list[os.DirEntry[str]]:
        """The entries of a folder that are not hidden, sorted by name."""
        try:
            with os.scandir(folder) as entries:
                shown = (entry for entry in entries if not entry.name.startswith("."))
                return sorted(shown, key=attrgetter("name"))
        except OSError as error:
            self._skip(prefix[:-1] or ".", "unreadable", error.strerror or "folder")
            return []

    def _record(self, path: str, name: str) -> int | None:
        """Add a file to the hashes, and return its size in bytes; None where it is skipped."""
        status = self._status(path, name)
        if status is None:
            self._names.update(f"{name}\0".encode("utf-8", "surrogateescape"))
            return None
        size, changed_ns = status.st_size, status.st_mtime_ns
        line = f"{name}\0{size}\0".encode("utf-8", "surrogateescape")
        self._names.update(line)
        self._times.update(b"%b%d\0" % (line, changed_ns))
        if changed_ns > self.newest_ns:
            self.newest_ns = changed_ns
        return size

    def _status(self, path: str, name: str) -> os.stat_result | None:
        """The status of a regular file. Anything else is skipped, and never opened."""
        try:
            status = os.stat(path)
        except FileNotFoundError:
            detail = "the link leads nowhere" if os.path.islink(path) else "no such file"
            self._skip(name, "missing", detail)
            return None
        except OSError as error:
            self._skip(name, "unreadable", error.strerror or "no status")
            return None
        if not stat.S_ISREG(status.st_mode):
            self._skip(name, "unknown kind", "no regular file")
            return None
        return status

    def _has_good_size(self, name: str, size: int) -> bool:
        """Whether a file is neither empty nor too large; otherwise it is skipped."""
        if size == 0:
            self._skip(name, "empty", "a file of 0 bytes")
        elif size > self._max_file_bytes:
            self._skip(name, "over the limit", f"a file of {size} bytes")
        return 0 < size <= self._max_file_bytes

    def _tar_files(self, path: str, name: str, split: str | None) -> list[SourceFile]:
        """The files in a WebDataset tar; what is skipped of it is named SHARD.tar/MEMBER."""
        members, flaws = read_webdataset_tar(path, self._max_file_bytes)
        self.files += sum(1 + (m.caption is not None) for m in members)
        self.files += sum(bool(f.name) for f in flaws)
        for flaw in flaws:
            self._skip(f"{name}/{flaw.name}" if flaw.name else name, flaw.reason, flaw.detail)
        folder = Path(path).parent.name
        split = split or (folder if folder in SPLITS else None)
        files = []
        for member in members:
            stem = f"{_stem(name)}/{member.key}"
            files.append(
                SourceFile(
                    name=f"{name}/{member.name}",
                    stem=stem,
                    key=make_key(stem),
                    path=path,
                    modality=member.modality,
                    size=member.size,
                    split=split,
                    offset=member.offset,
                    caption=member.caption,
                )
            )
        return files


def _stem(name: str) -> str:
    """A name without its last suffix."""
    stem, suffix = os.path.splitext(name)
    return stem if len(suffix) > 1 else name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one. An error shows when the entry is opened."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _folder_split(name: str) -> str | None:
    """The split whose folder a file lies in, in a source that has a folder for each split."""
    top, slash, _ = name.partition("/")
    return top if slash and top in SPLITS else None
