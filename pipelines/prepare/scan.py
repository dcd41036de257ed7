"""The files of `prepare`'s sources, listed without decoding: folders, single files, and tars."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from array import array
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from bytelm.pipelines.prepare.container_reader import ContainerReader
from bytelm.pipelines.prepare.documents import BOOKKEEPING, SAME_FILE, SkippedFile, make_key
from bytelm.pipelines.prepare.file_status import Status, with_status
from bytelm.pipelines.prepare.patterns import NamePatterns
from bytelm.pipelines.prepare.splits import divide_folder
from bytelm.pipelines.prepare.tables import table_format
from bytelm.pipelines.prepare.tar_losses import ReadTar, weigh_damage
from bytelm.pipelines.prepare.webdataset_tars import TarContents, is_tar
from bytelm.pipelines.storage.tar_reader import COMPRESSED_SUFFIXES

HUB_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")
"""Folder of a repository in Hugging Face's cache."""
_CONTAINER_SUFFIXES = (
    *(".tar", *COMPRESSED_SUFFIXES),
    *(".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".zst"),
)
"""Ends of names that are looked at for being a tar or a table."""
HUB_FILES = ("version.txt", "CACHEDIR.TAG")
"""Bookkeeping beside these folders."""


class Source(NamedTuple):
    """A source on this machine."""

    path: Path
    place: tuple[str, ...]
    """Names of the folders that hold its files, the outermost first: for a folder its own name is
    the last one, for a download those of its URL."""


class SourceFile(NamedTuple):
    """A file, or a member of a tar, that may become a part of a document."""

    name: str
    """Relative to its source; of a member, `TAR/MEMBER`."""
    stem: str
    """The name without its suffix, which files of one document share."""
    key: str
    """The document's key, where no other document has the same."""
    path: str
    modality: str | None
    """None where the first bytes are yet to tell."""
    size: int
    split: str | None
    """The split that names of folders or a table of the dataset say; None where none does."""
    offset: int | None = None
    """Position of a member's first byte in the tar at `path`."""
    caption: str | None = None
    """From a JSON member of the same key in the tar, or from a table of the dataset."""


class _Folder(NamedTuple):
    """A folder that is to be walked."""

    path: str
    prefix: str
    """Start of its files' names: empty, or its name and a slash."""
    split: str | None
    is_split_folder: bool
    """Whether it or a folder above it is a split folder, whose subfolders are none."""
    is_cache: bool = False
    """Whether it holds the bookkeeping of Hugging Face's cache."""


def local_source(path: str | Path) -> Source:
    """A source at a path."""
    path = Path(path)
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    return Source(path, Path(os.path.normpath(folder)).parts[1:])


class SourceScan:
    """Lists the files of sources, and collects what it skips and what identifies the input."""

    def __init__(
        self,
        captions_file: Path | None,
        max_file_bytes: int,
        out: Path,
        patterns: NamePatterns,
    ):
        """
        Args:
            captions_file: is no source file where it lies in a source.
            max_file_bytes: larger files are skipped.
            out: folder of the set, which is no source where it lies in one.
            patterns: decide which files are used.
        """
        self.skipped: list[SkippedFile] = []
        self.files = 0
        """Files and members seen."""
        self.size = 0
        """Bytes of the files seen."""
        self.notes: list[tuple[str, str]] = []
        """Names of tars and their members, and what was noted about them."""
        self.newest_ns = 0
        """The latest modification time of a file."""
        self.inodes = array("Q")
        """Inode of each listed file, in the order of listing."""
        self.blob_folders: set[str] = set()
        """Paths of folders that hold the content of a Hugging Face cache, under names of no
        meaning. Links elsewhere name the files."""
        self.outside_split_folders = 0
        """Files that a divided folder holds outside of its split folders."""
        self.split_folders: dict[str, str] = {}
        """Splits by the names of split folders that were found, relative to their sources."""
        self._captions_path = str(captions_file.absolute()) if captions_file else None
        self._max_file_bytes = max_file_bytes
        self._out = str(out.absolute())
        self._patterns = patterns
        self._tars: list[ReadTar] = []
        self._names, self._times = hashlib.sha256(), hashlib.sha256()

    @property
    def names_hash(self) -> str:
        """SHA-256 over every file's name and size."""
        return self._names.hexdigest()

    @property
    def times_hash(self) -> str:
        """SHA-256 over every file's name, size and modification time."""
        return self._times.hexdigest()

    def add_identity(self, text: str) -> None:
        """Add to the hashes what the documents depend on beside the files."""
        self._names.update(f"{text}\0\0".encode("utf-8", "surrogateescape"))

    def list_files(self, source: Source, split: str | None) -> list[SourceFile]:
        """The files of a source, tars among them, which are not opened.

        Args:
            source: the source.
            split: split of all its files; None leaves it to its folders.
        """
        files: list[SourceFile] = []
        for path, (name, folder), answer in with_status(self._admitted(source, split)):
            status = self._record(path, name, answer)
            if status is None:
                continue
            if folder.is_cache:
                self._skip(name, BOOKKEEPING, "of Hugging Face's cache")
                continue
            self.size += status.st_size
            self.inodes.append(status.st_ino)
            stem = _stem(name)
            size, key = status.st_size, make_key(stem)
            files.append(SourceFile(name, stem, key, path, None, size, folder.split))
        return files

    def _admitted(
        self, source: Source, split: str | None
    ) -> Iterator[tuple[str, tuple[str, _Folder]]]:
        """Path, name and folder of each file of a source that the patterns let in."""
        all_admitted = self._patterns.is_empty
        for path, name, folder in self._walk(source, split):
            if path == self._captions_path:
                continue
            self.files += 1
            if all_admitted or self._admits(name):
                yield path, (name, folder)

    def read_tars(
        self, files: Sequence[SourceFile], reader: ContainerReader
    ) -> Iterator[list[SourceFile]]:
        """The files in each of many WebDataset tars; what is skipped is named SHARD.tar/MEMBER."""
        contents = reader.read_tars([file.path for file in files], self._max_file_bytes)
        return map(self._tar_files, files, contents)

    def _tar_files(self, file: SourceFile, contents: TarContents) -> list[SourceFile]:
        self.files += contents.members
        for noted, note in contents.notes:
            self.notes.append((f"{file.name}/{noted}" if noted else file.name, note))
        folder = os.path.dirname(file.path)
        tar = (contents.size, contents.members, contents.parts, contents.damage)
        self._tars.append(ReadTar(file.name, folder, *tar))
        for flaw in contents.flaws:
            name = f"{file.name}/{flaw.name}"
            self.skipped.append(SkippedFile(name, flaw.reason, flaw.detail, flaw.size, flaw.count))
        files = []
        for member in contents.files:
            name = f"{file.name}/{member.name}"
            if not self._patterns.admits(name):
                continue
            stem = f"{file.stem}/{member.key}"
            files.append(
                SourceFile(
                    name=name,
                    stem=stem,
                    key=make_key(stem),
                    path=file.path,
                    modality=member.modality,
                    size=member.size,
                    split=file.split,
                    offset=member.offset,
                    caption=member.caption,
                )
            )
        return files

    def skip_damaged_tars(self) -> tuple[int, int]:
        """Skip what damaged tars have lost. To be called once, after all tars were read.

        Returns:
            members and bytes that nobody has counted, by estimate.
        """
        unseen_files = unseen_bytes = 0
        for tar, damage, members, size in weigh_damage(self._tars):
            lost = SkippedFile(tar.name, damage.reason, damage.detail, damage.size, damage.count)
            self.skipped.append(lost)
            unseen_files += members
            unseen_bytes += size
        return unseen_files, unseen_bytes

    def has_good_size(self, file: SourceFile) -> bool:
        """Whether a file is neither empty nor too large; otherwise it is skipped."""
        if file.size == 0:
            self._skip(file.name, "empty", "a file of 0 bytes")
        elif file.size > self._max_file_bytes:
            detail = f"a file of {file.size} bytes"
            self._skip(file.name, "over the limit", detail, file.size)
        return 0 < file.size <= self._max_file_bytes

    def _admits(self, name: str) -> bool:
        """Whether patterns let a file in; of a tar, whether it is opened."""
        return self._patterns.admits_tar(name) if is_tar(name) else self._patterns.admits(name)

    def _skip(self, name: str, reason: str, detail: str, size: int = 0) -> None:
        self.skipped.append(SkippedFile(name, reason, detail, size))

    def _walk(self, source: Source, split: str | None) -> Iterator[tuple[str, str, _Folder]]:
        """Absolute path and relative name of every file of a source, and its folder, in sorted
        order. Hidden files and links to folders are left out."""
        top = str(source.path.absolute())
        first = _Folder(top, "", split, split is not None)
        if not source.path.is_dir():
            yield top, source.path.name, first
            return
        folders = [first]  # the next folder last
        while folders:
            folder = folders.pop()
            entries, subfolders = [], []
            for entry in self._entries(folder):
                if not _is_folder(entry):
                    entries.append(entry)
                elif entry.is_symlink():
                    self._skip_link(source, entry.path, folder.prefix + entry.name)
                elif entry.path != self._out:
                    subfolders.append(entry.name)
            outer, inner = self._divide(folder, subfolders)
            if outer.split and not outer.is_split_folder:
                self.outside_split_folders += len(entries)
            is_hub = any(HUB_REPOSITORY.fullmatch(name) for name in subfolders)
            for entry in entries:
                is_cache = is_hub and entry.name in HUB_FILES
                holder = outer._replace(is_cache=True) if is_cache else outer
                yield entry.path, folder.prefix + entry.name, holder
            folders += reversed(inner)

    def _skip_link(self, source: Source, path: str, name: str) -> None:
        """Skip a link to a folder, which loses nothing where the folder lies in the source."""
        self.files += 1
        target = os.path.relpath(os.path.realpath(path), os.path.realpath(source.path))
        if target == ".":
            self._skip(name, SAME_FILE, "a link to the source itself")
        elif any(part.startswith(".") for part in target.split("/")):  # outside or hidden
            detail = "a link to a folder: name the folder itself as a source"
            self._skip(name, "link", detail)
        else:
            self._skip(name, SAME_FILE, f"a link to the folder {target}")

    def _entries(self, folder: _Folder) -> list[os.DirEntry[str]]:
        """The entries of a folder that are not hidden, sorted by name."""
        try:
            with os.scandir(folder.path) as entries:
                shown = (entry for entry in entries if not entry.name.startswith("."))
                return sorted(shown, key=attrgetter("name"))
        except OSError as error:
            self.files += 1
            self._skip(folder.prefix[:-1] or ".", "unreadable", error.strerror or "folder")
            return []

    def _divide(self, folder: _Folder, names: Sequence[str]) -> tuple[_Folder, list[_Folder]]:
        """A folder with the split of its own files, and its subfolders with theirs."""
        splits: dict[str, str] = {}
        if not folder.is_split_folder:
            splits = divide_folder(names, is_source=not folder.prefix)
        if len(set(splits.values())) > 1:  # val and test hold what their folders hold, and no more
            folder = folder._replace(split="train")
        is_cache = "snapshots" in names and ("blobs" in names or "refs" in names)
        subfolders = []
        for name in names:
            path, prefix = os.path.join(folder.path, name), f"{folder.prefix}{name}/"
            if is_cache and name == "blobs":
                self.blob_folders.add(path)
            if name in splits:
                self.split_folders[prefix[:-1]] = splits[name]
            subfolders.append(
                _Folder(
                    path=path,
                    prefix=prefix,
                    split=splits.get(name, folder.split),
                    is_split_folder=folder.is_split_folder or name in splits,
                    is_cache=folder.is_cache or (is_cache and name == "refs"),
                )
            )
        return folder, subfolders

    def _record(self, path: str, name: str, answer: Status) -> os.stat_result | None:
        """Add a file to the hashes, and return its status; None where it is skipped."""
        status = self._usable(path, name, answer)
        if status is None:
            self._names.update(f"{name}\0".encode("utf-8", "surrogateescape"))
            return None
        line = f"{name}\0{status.st_size}\0".encode("utf-8", "surrogateescape")
        self._names.update(line)
        self._times.update(b"%b%d\0" % (line, status.st_mtime_ns))
        if status.st_mtime_ns > self.newest_ns:
            self.newest_ns = status.st_mtime_ns
        return status

    def _usable(self, path: str, name: str, answer: Status) -> os.stat_result | None:
        """The status of a regular file. Anything else is skipped, and never opened."""
        if isinstance(answer, FileNotFoundError):
            detail = "the link leads nowhere" if os.path.islink(path) else "no such file"
            self._skip(name, "missing", detail)
        elif isinstance(answer, OSError):
            self._skip(name, "unreadable", answer.strerror or "no status")
        elif not stat.S_ISREG(answer.st_mode):
            self._skip(name, "unknown kind", "no regular file")
        else:
            return answer
        return None


def is_container(name: str) -> bool:
    """Whether a file's name says that it is a tar or a table, which holds many documents."""
    if not name.lower().endswith(_CONTAINER_SUFFIXES):
        return False
    return is_tar(name) or table_format(name) is not None


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
