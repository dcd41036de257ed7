"""Which documents the sources of `prepare` make.

A document is a file, or the files of equal stem in one folder that are of different modalities,
together with their captions. Nothing is decoded here. A file's modality shows in its first bytes,
which are read here only where files share a stem.
"""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import MediaError
from bytelm.modalities.detect import START_BYTES, detect_modality
from bytelm.pipelines.prepare.captions import Captions
from bytelm.pipelines.prepare.documents import (
    CAPTION_ALONE,
    DocumentPart,
    SkippedFile,
    SourceDocument,
    split_of,
)
from bytelm.pipelines.prepare.scan import SourceFile, SourceScan
from bytelm.pipelines.prepare.webdataset_tars import expand_braces, is_tar
from bytelm.pipelines.shards.format import SPLITS

_PART_ORDER = {modality: position for position, modality in enumerate((None, *MODALITIES))}
"""Position of each modality among a document's parts."""


@dataclass(frozen=True)
class FoundDocuments:
    """The documents of all sources."""

    documents: list[SourceDocument]
    """Documents in the set's order: by split, then by the SHA-256 of the key."""
    skipped: list[SkippedFile]
    files: int
    """Files and members of tars that were seen."""
    names_hash: str
    """SHA-256 over every file's name and size."""
    times_hash: str
    """SHA-256 over every file's name, size and modification time."""
    newest_ns: int
    """The latest modification time of a file."""


def find_documents(
    sources: Sequence[Path],
    captions: Captions | None,
    shares: tuple[float, float, float],
    max_file_bytes: int,
    out: Path,
) -> FoundDocuments:
    """Find the documents of all sources.

    Args:
        sources: files, folders, and patterns of tars with braces. Folders are walked in sorted
            order without hidden files and links to folders. The members of tars count as files.
        captions: captions by file name.
        shares: shares of train, val and test, for documents that no folder of their source assigns.
        max_file_bytes: larger files are skipped.
        out: the set's folder, which is no source where it lies in one.
    Raises:
        ValueError: where not one of the sources exists.
    """
    sources = [expanded for source in sources for expanded in _expand(source)]
    if not any(s.exists() for s in sources):
        raise ValueError(f"no such source: {', '.join(map(str, sources))}")
    scan = SourceScan(captions.path if captions else None, max_file_bytes, out)
    with _collector_paused():
        files = [scan.list_files(source) for source in sources]
        grouping = _Grouping(captions, shares)
        documents = grouping.documents(files)
    return FoundDocuments(
        documents=documents,
        skipped=scan.skipped + grouping.skipped,
        files=scan.files,
        names_hash=scan.names_hash,
        times_hash=scan.times_hash,
        newest_ns=scan.newest_ns,
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Disable garbage collection. It would visit millions of objects that all stay, again and
    again, which is half of the time that finding documents takes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _expand(source: Path) -> list[Path]:
    """A source, or the tars that a pattern with braces names."""
    if is_tar(source.name) and "{" in str(source) and not source.exists():
        return [Path(name) for name in expand_braces(str(source))]
    return [source]


class _Grouping:
    """Groups files into documents."""

    def __init__(self, captions: Captions | None, shares: tuple[float, float, float]):
        self._captions = captions
        self._shares = shares
        self._used_captions: set[str] = set()
        self.skipped: list[SkippedFile] = []

    def documents(self, files_by_source: Sequence[Sequence[SourceFile]]) -> list[SourceDocument]:
        """The documents of the files of each source, in the set's order. To be called once."""
        count = Counter(file.key for files in files_by_source for file in files)
        ranked: list[tuple[int, bytes, SourceDocument]] = []  # by split and SHA-256 of the key
        keys: set[str] = set()
        for files in files_by_source:
            single = ([file] for file in files if count[file.key] == 1)
            groups = self._groups(file for file in files if count[file.key] > 1)
            for group in chain(single, groups):
                key = group[0].key
                parts = self._parts(group)
                if key in keys:
                    self._skip_duplicates(parts)
                    continue
                keys.add(key)
                digest = hashlib.sha256(key.encode()).digest()
                split = group[0].split or split_of(digest, self._shares)
                ranked.append((SPLITS.index(split), digest, SourceDocument(key, split, parts)))
        self._skip_unused_captions()
        return [document for _, _, document in sorted(ranked)]

    def _skip(self, name: str, reason: str, detail: str) -> None:
        self.skipped.append(SkippedFile(name, reason, detail))

    def _groups(self, files: Iterable[SourceFile]) -> Iterable[list[SourceFile]]:
        """Files of one source that share their keys with others, grouped by stem. A group has one
        file of each modality, as their first bytes show it; the rest is skipped."""
        groups: dict[str, list[SourceFile]] = {}
        for file in files:
            modality = file.modality or self._detect(file)
            if modality is None:
                continue
            group = groups.setdefault(file.stem, [])
            twin = next((f for f in group if f.modality == modality), None)
            if twin:
                self._skip(file.name, "duplicate key", f"{twin.name} has the same key")
            else:
                group.append(file._replace(modality=modality))
        return groups.values()

    def _detect(self, file: SourceFile) -> str | None:
        """The modality that a file's first bytes show; where they show none, or other content than
        its name says, it is skipped."""
        try:
            with open(file.path, "rb") as opened:
                opened.seek(file.offset or 0)
                return detect_modality(file.name, opened.read(START_BYTES))
        except OSError as error:
            self._skip(file.name, "unreadable", error.strerror or "cannot be opened")
        except MediaError as error:
            self._skip(file.name, error.reason, error.detail)
        return None

    def _parts(self, group: Sequence[SourceFile]) -> tuple[DocumentPart, ...]:
        """The parts of a document in their order, each caption before its file."""
        parts: list[DocumentPart] = []
        for file in sorted(group, key=lambda f: _PART_ORDER[f.modality]):
            caption = self._caption(file)
            if caption is not None:
                size = len(caption.encode())
                parts.append(DocumentPart("text", file.name, None, size, caption))
            parts.append(
                DocumentPart(file.modality, file.name, file.path, file.size, offset=file.offset)
            )
        return tuple(parts)

    def _caption(self, file: SourceFile) -> str | None:
        """A file's caption, from the captions file or else from its tar."""
        name = self._captions.name_of(file.path, file.name) if self._captions else None
        if self._captions is None or name is None:
            return file.caption
        self._used_captions.add(name)
        return self._captions.texts[name]

    def _skip_duplicates(self, parts: Sequence[DocumentPart]) -> None:
        for part in parts:
            if part.path is None:
                self._skip(part.name, CAPTION_ALONE, "its file has a duplicate key")
            else:
                detail = "a file of another source has the same key"
                self._skip(part.name, "duplicate key", detail)

    def _skip_unused_captions(self) -> None:
        if self._captions:
            for name in self._captions.texts:
                if name not in self._used_captions:
                    self._skip(name, CAPTION_ALONE, "no file of this name became a document")
