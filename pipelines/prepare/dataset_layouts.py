"""Recognition of datasets as people have them: which files are captions, and which bookkeeping.

Names decide what is looked at; only tables of captions and JSON files beside images and sounds are
opened. A source without such names costs one pass over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bytelm.pipelines.prepare.bookkeeping import BOOKKEEPING_NAMES, STATS_SUFFIX, bookkeeping_files
from bytelm.pipelines.prepare.captions import SIDECAR_SUFFIXES
from bytelm.pipelines.prepare.dataset_tables import TABLE_NAMES, read_tables
from bytelm.pipelines.prepare.file_index import FileIndex
from bytelm.pipelines.prepare.json_sidecars import read_sidecars
from bytelm.pipelines.prepare.scan import SourceFile

_NAMES = (".json", *TABLE_NAMES, *BOOKKEEPING_NAMES)


@dataclass(frozen=True)
class Layout:
    """Datasets recognised in the files of one source. Files have their names in `SourceFile`."""

    captions: dict[str, str] = field(default_factory=dict)
    """Captions by the name of the file that they describe, which may be missing."""
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and detail by name, for files that are no documents: bookkeeping, and files whose
    content became captions. The reasons are harmless."""
    splits: dict[str, str] = field(default_factory=dict)
    """Splits that tables of the dataset assign, by file name."""
    names: list[str] = field(default_factory=list)
    """Remarks on what was recognised, for the summary: "LJSpeech: 5 captions (metadata.csv)"."""
    columns: set[str] = field(default_factory=set)
    """Columns of the tables that name files."""


def recognise_layout(files: Sequence[SourceFile], text_field: str | None = None) -> Layout:
    """Recognise the datasets in the files of a source.

    Args:
        files: the source's files in any order, without those that patterns exclude. A tar is one
            file, since its members are listed later (they bring their own captions).
        text_field: the column of texts in tables, as the user named it; None to guess it.
    """
    candidates = [file for file in files if file.name.lower().endswith(_NAMES)]
    if not candidates:
        return Layout()
    index = FileIndex(files)
    tables = read_tables(_ending(candidates, TABLE_NAMES), index, text_field)
    layout = Layout({}, tables.left_out, tables.splits, tables.remarks(), tables.columns)
    layout.left_out.update(bookkeeping_files(candidates, index))
    if any(name.endswith(STATS_SUFFIX) for name in layout.left_out):
        layout.names.append("img2dataset: tars or folders of images beside their bookkeeping")
    json_files = [f for f in _ending(candidates, (".json",)) if f.name not in layout.left_out]
    sidecars = read_sidecars(json_files, index, SIDECAR_SUFFIXES)
    layout.left_out.update(sidecars.left_out)
    layout.names.extend(sidecars.names)
    layout.captions.update(sidecars.captions)
    for name, caption in tables.captions.items():
        if not _has_text_beside(name, index):
            layout.captions.setdefault(name, caption)
    return layout


def _ending(files: Iterable[SourceFile], suffixes: tuple[str, ...]) -> list[SourceFile]:
    return [file for file in files if file.name.lower().endswith(suffixes)]


def _has_text_beside(name: str, index: FileIndex) -> bool:
    """Whether a file has a text of its stem, which is its caption rather than a table's."""
    file = index.by_name.get(name)
    return file is not None and any(file.stem + s in index.by_name for s in SIDECAR_SUFFIXES)
