"""What `prepare` finds: the files of its sources, and the documents that they make.

A document is a file, or the files of equal stem in one folder that are of different modalities,
and the captions of them. Nothing is decoded here. A file's modality shows in its first bytes,
which are read here only where it matters to what makes a document.

There is an object or two for each of millions of files, so these are tuples.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from bytelm.modalities import MODALITIES
from bytelm.modalities.detect import START_BYTES, UNKNOWN_KIND, modality_of
from bytelm.pipelines.prepare.webdataset_tars import (
    METADATA,
    expand_braces,
    is_tar,
    is_unicode,
    read_shard,
)
from bytelm.pipelines.shards.format import SPLITS

KEY_MAX = 90
KEY_HASH = 8
CAPTION_ALONE = "caption without a file"
NOT_BAD = (CAPTION_ALONE, METADATA)
"""Reasons that say nothing against a file."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_ORDER = {modality: place for place, modality in enumerate((None, *MODALITIES))}
"""Of a document's parts."""


@dataclass(frozen=True, order=True)
class Skip:
    """What did not become part of a document, and why."""

    name: str
    """The file's name, relative to its source."""
    reason: str
    """What it is counted under."""
    detail: str


class Part(NamedTuple):
    """A segment to be: a file, or the caption of one."""

    modality: str | None
    """None where the file's first bytes have yet to tell."""
    name: str
    """The file's name relative to its source; of a caption, the name of the file it describes."""
    path: str | None
    """None for a caption."""
    size: int
    """Bytes of the file or the caption."""
    caption: str = ""
    offset: int | None = None
    """Of a member's first byte in the tar at `path`; None for a whole file."""


class SourceDocument(NamedTuple):
    """A document to be."""

    key: str
    split: str
    parts: tuple[Part, ...]


@dataclass
class FoundDocuments:
    """All that the sources hold."""

    documents: list[SourceDocument] = field(default_factory=list)
    """In the order of the set: by split, then by SHA-256 of the key."""
    skipped: list[Skip] = field(default_factory=list)
    files: int = 0
    """Files that were looked at."""
    names_hash: str = ""
    """SHA-256 over every file's name and size."""
    times_hash: str = ""
    """SHA-256 over every file's name, size and time of change."""
    newest_ns: int = 0
    """The latest time of change of a file."""


class _File(NamedTuple):
    name: str
    stem: str
    """What files of one document share: the name without its suffix."""
    key: str
    path: str
    modality: str | None
    size: int
    own_split: str | None
    """The split that the source's own folders say."""
    offset: int | None = None
    """Of a member's first byte in the tar at `path`."""
    caption: str | None = None
    """From a JSON member beside it in its tar."""


@dataclass(frozen=True)
class Captions:
    """A captions file."""

    path: Path
    texts: dict[str, str]
    sha256: str

    def of(self, path: str, name: str) -> str | None:
        """The name under which a file has a caption: relative to its source, or to the captions
        file's folder."""
        if name in self.texts:
            return name
        beside = Path(os.path.relpath(path, self.path.absolute().parent)).as_posix()
        return beside if beside in self.texts else None


def load_captions(path: Path) -> Captions:
    """Read a captions file, a JSON object of file names and captions.

    Raises ValueError where it cannot be read or is something else.
    """
    try:
        data = path.read_bytes()
        texts = json.loads(data)
    except OSError as error:
        raise ValueError(f"cannot read the captions file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the captions file {path} is no JSON: {error}") from error
    if not isinstance(texts, dict):
        raise ValueError(f"the captions file {path} must be an object of file name to caption")
    for name, text in texts.items():
        if not isinstance(text, str) or not is_unicode(text):
            raise ValueError(f"the caption of {name!r} in {path} must be a string of text")
    return Captions(path, texts, hashlib.sha256(data).hexdigest())


def find_documents(
    sources: Sequence[Path],
    captions: Captions | None,
    shares: tuple[float, float, float],
    max_file_bytes: int,
    out: Path,
) -> FoundDocuments:
    """Find the documents of all sources.

    Args:
        sources: files, folders, and patterns of tars with braces; folders are walked in sorted
            order, names that begin with a dot are left out, and links to folders are not
            followed. The members of tars count as files.
        captions: captions by file name.
        shares: of train, val and test, for documents that no folder of their source assigns.
        max_file_bytes: larger files are skipped.
        out: the set's folder, which is no source where it lies in one.
    Raises:
        ValueError: where not one of the sources exists.
    """
    sources = [expanded for source in sources for expanded in _expand(source)]
    if not any(s.exists() for s in sources):
        raise ValueError(f"no such source: {', '.join(map(str, sources))}")
    found = FoundDocuments()
    with _collector_paused():
        by_source = _find_files(sources, captions, max_file_bytes, out, found)
        _find_documents(by_source, captions, shares, found)
    return found


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection: while millions of objects come to stay, it would go through all of
    them again and again, for half of the time that finding them takes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _find_files(
    sources: Sequence[Path],
    captions: Captions | None,
    max_file_bytes: int,
    out: Path,
    found: FoundDocuments,
) -> list[list[_File]]:
    """The files of each source that may become a part of a document."""
    names, times = hashlib.sha256(), hashlib.sha256()
    captions_path = str(captions.path.absolute()) if captions else None
    by_source = []
    for source in sources:
        is_divided = (source / SPLITS[0]).is_dir()
        files: list[_File] = []
        for path, name in _walk(source, out.absolute(), found):
            if path == captions_path:
                continue
            found.files += 1
            status = _status(path, name, found)
            if status is None:
                names.update(f"{name}\0".encode("utf-8", "surrogateescape"))
                continue
            size, changed = status.st_size, status.st_mtime_ns
            line = f"{name}\0{size}\0".encode("utf-8", "surrogateescape")
            names.update(line)
            times.update(b"%b%d\0" % (line, changed))
            if changed > found.newest_ns:
                found.newest_ns = changed
            split = _own_split(name) if is_divided else None
            if is_tar(name):
                files += _tar_files(path, name, split, max_file_bytes, found)
            elif _has_size(name, size, max_file_bytes, found):
                stem = _stem(name)
                files.append(_File(name, stem, make_key(stem), path, None, size, split))
        by_source.append(files)
    found.names_hash, found.times_hash = names.hexdigest(), times.hexdigest()
    return by_source


def _find_documents(
    by_source: list[list[_File]],
    captions: Captions | None,
    shares: tuple[float, float, float],
    found: FoundDocuments,
) -> None:
    """Make documents of the files of all sources."""
    shared = Counter(file.key for files in by_source for file in files)
    ranked: list[tuple[int, bytes, SourceDocument]] = []  # by split and SHA-256 of the key
    keys: set[str] = set()
    described: set[str] = set()
    for files in by_source:
        alone = ([file] for file in files if shared[file.key] == 1)
        groups = _groups((file for file in files if shared[file.key] > 1), found)
        for group in chain(alone, groups):
            key, own_split = group[0].key, group[0].own_split
            parts = _parts(group, captions, described)
            if key in keys:
                _skip_duplicates(parts, found)
                continue
            keys.add(key)
            digest = hashlib.sha256(key.encode()).digest()
            split = own_split or split_of(digest, shares)
            ranked.append((SPLITS.index(split), digest, SourceDocument(key, split, parts)))
    if captions:
        found.skipped += [
            Skip(name, CAPTION_ALONE, "no file of this name became a document")
            for name in captions.texts
            if name not in described
        ]
    found.documents = [document for _, _, document in sorted(ranked)]


def make_key(stem: str) -> str:
    """The key of a document from its path without suffix, relative to its source."""
    safe = _UNSAFE.sub("_", stem)
    if safe == stem and len(safe) <= KEY_MAX:
        return safe
    digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:KEY_HASH]
    return f"{safe[: KEY_MAX - KEY_HASH - 1]}-{digest}"


def split_of(digest: bytes, shares: tuple[float, float, float]) -> str:
    """The split of a document by the SHA-256 of its key."""
    place = int.from_bytes(digest[-8:]) / 2**64
    if place < shares[0]:
        return "train"
    return "val" if place < shares[0] + shares[1] else "test"


def count_reasons(skipped: Sequence[Skip]) -> dict[str, int]:
    """How often each reason occurs, by name."""
    return dict(sorted(Counter(s.reason for s in skipped).items()))


def _expand(source: Path) -> list[Path]:
    """A source, or the tars that a pattern with braces names."""
    if is_tar(source.name) and "{" in str(source) and not source.exists():
        return [Path(name) for name in expand_braces(str(source))]
    return [source]


def _tar_files(
    path: str, name: str, own_split: str | None, max_file_bytes: int, found: FoundDocuments
) -> list[_File]:
    """The files that a foreign tar holds; what is skipped of it is named SHARD.tar/MEMBER."""
    members, flaws = read_shard(path, max_file_bytes)
    found.files += sum(1 + (m.caption is not None) for m in members)
    found.files += sum(bool(f.name) for f in flaws)
    found.skipped += (
        Skip(f"{name}/{f.name}" if f.name else name, f.reason, f.detail) for f in flaws
    )
    folder = Path(path).parent.name
    split = own_split or (folder if folder in SPLITS else None)
    files = []
    for member in members:
        stem = f"{_stem(name)}/{member.key}"
        place = (make_key(stem), path, member.modality, member.size, split, member.offset)
        files.append(_File(f"{name}/{member.name}", stem, *place, member.caption))
    return files


def _stem(name: str) -> str:
    """A name without its last suffix."""
    stem, suffix = os.path.splitext(name)
    return stem if len(suffix) > 1 else name


def _walk(source: Path, out: Path, found: FoundDocuments) -> Iterator[tuple[str, str]]:
    """Every file of a source, by its absolute path and its name relative to the source, in sorted
    order."""
    top = str(source.absolute())
    if not source.is_dir():
        yield top, source.name
        return
    folders = [(top, "")]  # and what stands before its files' names, the next one last
    while folders:
        folder, prefix = folders.pop()
        try:
            with os.scandir(folder) as entries:
                shown = sorted(
                    (e for e in entries if not e.name.startswith(".")), key=attrgetter("name")
                )
        except OSError as error:
            detail = error.strerror or "folder"
            found.skipped.append(Skip(prefix[:-1] or ".", "unreadable", detail))
            continue
        below = []
        for entry in shown:
            name = prefix + entry.name
            if not _is_folder(entry):
                yield entry.path, name
            elif entry.is_symlink():
                found.skipped.append(Skip(name, "link", "a link to a folder"))
            elif entry.path != str(out):
                below.append((entry.path, f"{name}/"))
        folders += reversed(below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; what cannot be told shows when it is opened."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _status(path: str, name: str, found: FoundDocuments) -> os.stat_result | None:
    """The status of a regular file; other things are skipped, and never opened."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        detail = "the link leads nowhere" if os.path.islink(path) else "no such file"
        found.skipped.append(Skip(name, "missing", detail))
        return None
    except OSError as error:
        found.skipped.append(Skip(name, "unreadable", error.strerror or "no status"))
        return None
    if not stat.S_ISREG(status.st_mode):
        found.skipped.append(Skip(name, "unknown kind", "no regular file"))
        return None
    return status


def _has_size(name: str, size: int, limit: int, found: FoundDocuments) -> bool:
    """Whether a file has a size to be decoded; otherwise it is skipped."""
    if size == 0:
        found.skipped.append(Skip(name, "empty", "a file of 0 bytes"))
    elif size > limit:
        found.skipped.append(Skip(name, "over the limit", f"a file of {size} bytes"))
    return 0 < size <= limit


def _groups(files: Iterable[_File], found: FoundDocuments) -> Iterable[list[_File]]:
    """The files of one source that share their keys with others, grouped by stem, each group with
    one file of each modality. The first bytes of the files show it."""
    groups: dict[str, list[_File]] = {}
    for file in files:
        modality = file.modality or _modality(file, found)
        if modality is None:
            continue
        group = groups.setdefault(file.stem, [])
        same = next((f for f in group if f.modality == modality), None)
        if same:
            found.skipped.append(Skip(file.name, "duplicate key", f"{same.name} has the same key"))
        else:
            group.append(file._replace(modality=modality))
    return groups.values()


def _modality(file: _File, found: FoundDocuments) -> str | None:
    """What a file's first bytes show; where there is no telling, it is skipped."""
    try:
        with open(file.path, "rb") as opened:
            modality = modality_of(opened.read(START_BYTES))
    except OSError as error:
        detail = error.strerror or "cannot be opened"
        found.skipped.append(Skip(file.name, "unreadable", detail))
        return None
    if modality is None:
        found.skipped.append(Skip(file.name, *UNKNOWN_KIND))
    return modality


def _own_split(name: str) -> str | None:
    """The split whose folder a file lies in, where the source is divided into such folders."""
    top, below, _ = name.partition("/")
    return top if below and top in SPLITS else None


def _parts(group: list[_File], captions: Captions | None, described: set[str]) -> tuple[Part, ...]:
    """The parts of a document in their order, each caption before its file."""
    parts: list[Part] = []
    for file in sorted(group, key=lambda f: _ORDER[f.modality]):
        caption = captions.of(file.path, file.name) if captions else None
        text = file.caption
        if captions and caption is not None:
            described.add(caption)
            text = captions.texts[caption]
        if text is not None:
            parts.append(Part("text", file.name, None, len(text.encode()), text))
        parts.append(Part(file.modality, file.name, file.path, file.size, offset=file.offset))
    return tuple(parts)


def _skip_duplicates(parts: Sequence[Part], found: FoundDocuments) -> None:
    for part in parts:
        if part.path is None:
            found.skipped.append(Skip(part.name, CAPTION_ALONE, "its file has a duplicate key"))
        else:
            detail = "a file of another source has the same key"
            found.skipped.append(Skip(part.name, "duplicate key", detail))
