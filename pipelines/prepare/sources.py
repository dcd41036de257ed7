"""Which documents the sources of `prepare` make.

The files of all sources are listed; names of one file that is reached twice, bookkeeping, and what
patterns exclude are left out; tars are read; and the rest is grouped into documents. Nothing is
decoded here. A file's modality shows in its first bytes, which are read here only where files share
a stem.
"""

from __future__ import annotations

import gc
import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bytelm.pipelines.prepare.captions import Captions
from bytelm.pipelines.prepare.container_reader import ContainerReader
from bytelm.pipelines.prepare.dataset_layouts import Layout, recognise_layout
from bytelm.pipelines.prepare.documents import (
    BOOKKEEPING,
    CAPTION_ALONE,
    SkippedFile,
    SourceDocument,
)
from bytelm.pipelines.prepare.grouping import Grouping
from bytelm.pipelines.prepare.keys import KeyCandidate, unique_keys
from bytelm.pipelines.prepare.patterns import NamePatterns
from bytelm.pipelines.prepare.same_files import drop_same_files
from bytelm.pipelines.prepare.scan import (
    Source,
    SourceFile,
    SourceScan,
    is_container,
    local_source,
)
from bytelm.pipelines.prepare.splits import divide_sources, split_of_file_name, split_of_word
from bytelm.pipelines.prepare.webdataset_tars import expand_braces, is_tar
from bytelm.pipelines.shards.set_summary import counted, first_names


@dataclass(frozen=True)
class FoundDocuments:
    """The documents of all sources."""

    documents: Sequence[SourceDocument]
    """Documents in the set's order: by split, then by the SHA-256 of the key."""
    tables: list[SourceFile]
    """Tables whose rows are documents. No two have the same key."""
    skipped: list[SkippedFile]
    files: int
    """Files and members of tars that were seen."""
    names_hash: str
    """SHA-256 over every file's name and size."""
    times_hash: str
    """SHA-256 over every file's name, size and modification time."""
    newest_ns: int
    """The latest modification time of a file."""
    size: int = 0
    """Bytes of the files that were seen."""
    unseen_files: int = 0
    """Members that damaged tars have lost, by estimate, beside `files`."""
    unseen_bytes: int = 0
    """Bytes that they have lost beside `size`."""
    notes: Sequence[tuple[str, str]] = ()
    """Names of files, and what was noted about them."""
    remarks: Sequence[str] = ()
    """Lines for the summary: datasets that were recognised, and how the sources were divided."""
    caption_columns: frozenset[str] = frozenset()
    """Columns of the tables whose texts are captions of files."""


def find_documents(
    sources: Sequence[Source],
    captions: Captions | None,
    shares: tuple[float, float, float],
    max_file_bytes: int,
    out: Path,
    patterns: NamePatterns,
    reader: ContainerReader,
    find_tables: Callable[[Sequence[SourceFile]], set[str]],
    text_field: str | None = None,
) -> FoundDocuments:
    """Find the documents of all sources.

    Args:
        sources: files, folders, patterns of names, and patterns of tars with braces. Folders are
            walked in sorted order without hidden files and links to folders. The members of tars
            count as files.
        captions: captions by file name.
        shares: shares of train, val and test, for documents that no name assigns.
        max_file_bytes: larger files are skipped.
        out: the set's folder, which is no source where it lies in one.
        patterns: decide which files are used.
        reader: reads tars.
        find_tables: returns the paths of the files whose rows are documents.
        text_field: the column of texts in tables, as the user named it; None to guess it.
    Raises:
        ValueError: where not one of the sources exists.
    """
    sources = [expanded for source in sources for expanded in _expand(source)]
    if not any(s.path.exists() for s in sources):
        raise ValueError(f"no such source: {', '.join(str(s.path) for s in sources)}")
    scan = SourceScan(captions.path if captions else None, max_file_bytes, out, patterns)
    with _collector_paused():
        listed = _list_sources(scan, sources)
        listed, skipped = drop_same_files(listed, scan.inodes, scan.blob_folders)
        remarks: list[str] = []
        caption_columns: set[str] = set()
        for i, source_files in enumerate(listed):
            named = _without_blobs(source_files, scan.blob_folders, skipped)
            layout = recognise_layout(named, text_field)
            listed[i] = _apply_layout(layout, named, skipped)
            remarks += layout.names
            caption_columns |= layout.columns
        files, tables = _open_containers(scan, sources, listed, reader, find_tables)
        unseen_files, unseen_bytes = scan.skip_damaged_tars()
        grouping = Grouping(captions, shares)
        documents = grouping.documents(sources, files)
    return FoundDocuments(
        documents=documents,
        tables=tables,
        skipped=[*skipped, *scan.skipped, *patterns.left_out(), *grouping.skipped],
        files=scan.files,
        names_hash=scan.names_hash,
        times_hash=scan.times_hash,
        newest_ns=scan.newest_ns,
        size=scan.size,
        unseen_files=unseen_files,
        unseen_bytes=unseen_bytes,
        notes=scan.notes,
        remarks=[*remarks, *_split_remarks(scan, grouping.moved)],
        caption_columns=frozenset(caption_columns),
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


def _expand(source: Source) -> list[Source]:
    """A source, or the files that a pattern names, where no file is spelled like it."""
    spelled = str(source.path)
    if source.path.exists() or source.path.is_symlink():
        return [source]
    paths = expand_braces(spelled) if is_container(spelled) else [spelled]
    if any(glob.has_magic(path) for path in paths):
        paths = [name for path in paths for name in sorted(glob.glob(path, recursive=True))]
    return [local_source(path) for path in paths] or [source]


def _list_sources(scan: SourceScan, sources: Sequence[Source]) -> list[list[SourceFile]]:
    """The files of each source, with the splits that names of folders and files say."""
    own_splits = divide_sources([(s.place or ("",))[-1] for s in sources])
    files_by_source = []
    containers: list[tuple[int, int]] = []  # numbers of source and file
    for number, (source, split) in enumerate(zip(sources, own_splits, strict=True)):
        if len(sources) > 1:
            scan.add_identity("/".join(source.place[-1:]))
        files = scan.list_files(source, split)
        files_by_source.append(files)
        for i, file in enumerate(files):
            if is_container(file.name):
                files[i] = file._replace(split=file.split or split_of_word(_folder(source, file)))
                containers.append((number, i))
    _split_by_file_names(files_by_source, containers)
    return files_by_source


def _folder(source: Source, file: SourceFile) -> str:
    """The name of the folder that holds a file."""
    parents = file.name.split("/")[:-1] or source.place
    return parents[-1] if parents else ""


def _split_by_file_names(
    files_by_source: Sequence[list[SourceFile]], containers: Sequence[tuple[int, int]]
) -> None:
    """Set the splits that the names of tars and tables say, where one of these is train."""
    splits: list[str | None] = []
    for number, i in containers:
        file = files_by_source[number][i]
        splits.append(file.split or split_of_file_name(file.name))
    if "train" in splits:
        for (number, i), split in zip(containers, splits, strict=True):
            files_by_source[number][i] = files_by_source[number][i]._replace(split=split)


def _apply_layout(
    layout: Layout, files: Sequence[SourceFile], skipped: list[SkippedFile]
) -> list[SourceFile]:
    """The files of a source without those that are no documents, with captions and splits of the
    dataset's tables. Left out files and captions of no file are added to `skipped`."""
    if not (layout.captions or layout.left_out or layout.splits):
        return list(files)
    kept = []
    for file in files:
        if file.name in layout.left_out:
            reason, detail = layout.left_out[file.name]
            skipped.append(SkippedFile(file.name, reason, detail, file.size))
            continue
        split = layout.splits.get(file.name, file.split)
        caption = layout.captions.pop(file.name, None)
        kept.append(file._replace(split=split, caption=caption))
    for name, text in layout.captions.items():
        detail = "no file of this name became a document"
        skipped.append(SkippedFile(name, CAPTION_ALONE, detail, len(text.encode())))
    return kept


def _without_blobs(
    files: Sequence[SourceFile], blob_folders: set[str], skipped: list[SkippedFile]
) -> Sequence[SourceFile]:
    """The files without those of Hugging Face's cache that no snapshot names; these are added to
    `skipped`."""
    if not blob_folders:
        return files
    named = []
    for file in files:
        if file.path.rpartition("/")[0] in blob_folders:
            detail = "in Hugging Face's cache, named by no snapshot"
            skipped.append(SkippedFile(file.name, BOOKKEEPING, detail, file.size))
        else:
            named.append(file)
    return named


def _open_containers(
    scan: SourceScan,
    sources: Sequence[Source],
    files_by_source: Sequence[Sequence[SourceFile]],
    reader: ContainerReader,
    find_tables: Callable[[Sequence[SourceFile]], set[str]],
) -> tuple[list[list[SourceFile]], list[SourceFile]]:
    """The files of each source, with the members of tars and without tables; and the tables."""
    containers = [file for files in files_by_source for file in files if is_container(file.name)]
    tars = [file for file in containers if is_tar(file.name)]
    members = dict(zip((t.path for t in tars), scan.read_tars(tars, reader), strict=True))
    table_paths = find_tables([file for file in containers if not is_tar(file.name)])
    opened: list[list[SourceFile]] = []
    tables: list[SourceFile] = []
    candidates: list[KeyCandidate] = []
    for number, (source, files) in enumerate(zip(sources, files_by_source, strict=True)):
        usable: list[SourceFile] = []
        for file in files:
            if is_container(file.name) and is_tar(file.name):
                usable += members.pop(file.path)
            elif file.path in table_paths:
                tables.append(file)
                candidates.append(KeyCandidate(file.name, source.place, None, number))
            elif scan.has_good_size(file):
                usable.append(file)
        opened.append(usable)
    keys = unique_keys(candidates, set())
    return opened, [t._replace(key=key) for t, key in zip(tables, keys, strict=True)]


def _split_remarks(scan: SourceScan, moved: Counter[str]) -> list[str]:
    """How names and small numbers decided splits, in words for the summary."""
    remarks = []
    folders: dict[str, list[str]] = {}
    for name, split in scan.split_folders.items():
        if name != split:
            folders.setdefault(split, []).append(f"{name}/")
    for split, names in folders.items():
        remarks.append(f"taken as {split}: {first_names(names, len(names))}")
    if scan.outside_split_folders:
        count = scan.outside_split_folders
        remarks.append(f"outside of split folders, taken as train: {counted(count, 'file')}")
    if moved:
        counts = ", ".join(f"{n} to {split}" for split, n in moved.items())
        remarks.append(f"moved so that the splits of a small set are not empty: {counts}")
    return remarks
