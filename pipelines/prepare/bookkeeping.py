"""Bookkeeping files beside shards and datasets, which are no documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bytelm.pipelines.prepare.documents import BOOKKEEPING
from bytelm.pipelines.prepare.file_index import FileIndex, folder_of, join
from bytelm.pipelines.prepare.scan import SourceFile

_ALWAYS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "_success", "_committed", "_started")
_BESIDE_TARS = ("sizes.json", "index.json", "wids.json")
_BESIDE_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "checksums.txt")
_CHECKSUMS = (".md5", ".sha1", ".sha256", ".sha512", "md5sums", "sha256sums", "sums.txt")
_OF_A_SHARD = (".parquet", ".json", ".idx", ".index", ".csv")
_STATE = "state.json"
_COMPILED = (".pyc", ".pyo")
BOOKKEEPING_NAMES = (
    *(*_ALWAYS, *_BESIDE_TARS, *_BESIDE_DATA, *_CHECKSUMS, _STATE),
    *_OF_A_SHARD,
    *_COMPILED,
)
"""Ends of names, in lower case, that can be bookkeeping."""
STATS_SUFFIX = "_stats.json"
"""End of the names of img2dataset's statistics of a tar or a folder."""


def bookkeeping_files(
    candidates: Iterable[SourceFile], index: FileIndex
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Name, reason and detail of each file among `candidates` that is bookkeeping.

    Most names say so only beside shards or data: `sizes.json` in a folder of code is a text.
    """
    for file in candidates:
        detail = _detail(file, index)
        if detail:
            yield file.name, (BOOKKEEPING, detail)


def _detail(file: SourceFile, index: FileIndex) -> str | None:
    folder = folder_of(file.name)
    base = file.name.rpartition("/")[2].lower()
    if base in _ALWAYS:
        return "of an operating system or a writer of tables"
    if base.endswith(_COMPILED) and folder.rpartition("/")[2] == "__pycache__":
        return "compiled from a source file, in Python's cache"
    shard = file.stem.removesuffix("_stats")
    if base.endswith(_OF_A_SHARD) and (shard in index.tar_stems or file.stem in index.tar_stems):
        return "describes a tar beside it"
    is_of_folder = base.endswith((".parquet", STATS_SUFFIX)) and _is_number(shard)
    if is_of_folder and shard in index.media_folders:
        return "describes a folder of images beside it"
    if base in _BESIDE_TARS and folder in index.tar_folders:
        return "lists the tars beside it"
    is_beside_info = base == _STATE and join(folder, "dataset_info.json") in index.by_name
    is_named = is_beside_info or base in _BESIDE_DATA or base.endswith(_CHECKSUMS)
    return "describes the data beside it" if is_named and folder in index.data_folders else None


def _is_number(stem: str) -> bool:
    return stem.rpartition("/")[2].isdigit()
