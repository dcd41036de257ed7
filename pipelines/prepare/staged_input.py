"""The listed input of a set that is prepared in parts, in the folder of its piece files.

SET/.parts/input.json        written by the part that lists the sources; all others are of the same
SET/.parts/documents.jsonl   the documents of each work item of files, a line an item
SET/.parts/listing.lock      held while a part lists the sources
SET/.parts/item-*            piece files
SET/.parts/part-I.lock       held while part I runs
SET/.parts/merged*.jsonl     the shards that `merge` has written
SET/.parts/merge-I.lock      held while share I of them is written
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from bytelm.pipelines.prepare.captions import load_captions
from bytelm.pipelines.prepare.documents import DocumentPart, SkippedFile, SourceDocument
from bytelm.pipelines.prepare.prepare import PrepareInput, PrepareOptions
from bytelm.pipelines.prepare.set_folder import PARTS_FOLDER
from bytelm.pipelines.prepare.sources import FoundDocuments
from bytelm.pipelines.prepare.tables import TableFields, TableFormat, TableUnit
from bytelm.pipelines.prepare.work_items import WorkItem, work_items
from bytelm.pipelines.storage.files import replace_atomic, write_atomic

if TYPE_CHECKING:
    from rich.console import Console

STAGED_INPUT = "input.json"
DOCUMENTS = "documents.jsonl"


class StoredDocuments(Sequence[SourceDocument]):
    """The documents of files, read from the lines of their items when they are used."""

    def __init__(self, path: Path, items: Sequence[WorkItem], lines: Sequence[int]):
        """
        Args:
            path: the file of the lines.
            items: all work items; those of files come first, in order.
            lines: where the line of each item of files begins.
        """
        self._path = path
        self._lines = list(lines)
        self._stops = [item.stop for item in items[: len(lines)]]

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    @overload
    def __getitem__(self, number: int) -> SourceDocument: ...

    @overload
    def __getitem__(self, number: slice) -> list[SourceDocument]: ...

    def __getitem__(self, number: int | slice) -> SourceDocument | list[SourceDocument]:
        numbers = range(len(self))[number]
        if isinstance(numbers, int):
            return next(self._read(range(numbers, numbers + 1)))
        assert numbers.step == 1
        return list(self._read(numbers))

    def __iter__(self) -> Iterator[SourceDocument]:
        return self._read(range(len(self)))

    def _read(self, numbers: range) -> Iterator[SourceDocument]:
        """Consecutive documents, one item in memory at a time."""
        item = bisect_right(self._stops, numbers.start)
        with open(self._path, "rb") as file:
            while item < len(self._stops):
                first = self._stops[item - 1] if item else 0
                if first >= numbers.stop:
                    return
                file.seek(self._lines[item])
                own = slice(max(numbers.start - first, 0), numbers.stop - first)
                for key, split, parts in json.loads(file.readline())[own]:
                    yield SourceDocument(key, split, tuple(DocumentPart(*part) for part in parts))
                item += 1


@dataclass(frozen=True)
class StagedInput:
    """Input and options on which all parts of a set agree, and which merging them needs."""

    listed: PrepareInput
    """Its documents are read when they are used."""
    items: list[WorkItem]
    """All work items."""
    request: str
    """Identifies the sources' names and the options."""
    parts: int
    """How many parts there are."""
    shard_bytes: int
    max_bad_share: float


def stage_input(
    out: Path,
    sources: Sequence[str | Path],
    options: PrepareOptions,
    parts: int,
    list_sources: Callable[[], PrepareInput],
    console: Console | None = None,
) -> StagedInput:
    """The input of the set in `out`, listed by this part, or as another part has listed it.

    Args:
        out: the set's folder.
        sources: see `prepare`.
        options: see `prepare`.
        parts: how many parts there are.
        list_sources: lists the sources; it is called by one part, while the others wait.
        console: says that this part waits, and when the sources were listed.
    Raises:
        ValueError: where another part has other sources, other options or another number of parts;
            and what `list_sources` raises, after which no part has begun.
    """
    folder = out / PARTS_FOLDER
    request = _request(sources, options)
    with _listing(folder, console):
        path = folder / STAGED_INPUT
        if not path.exists():
            _store(folder, list_sources(), request, options, parts)
        elif console:
            time = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "seconds")
            console.print(f"the sources are as a part has listed them at {time}", highlight=False)
    staged = load_staged_input(out)
    if staged.parts != parts:
        cause = f"in {staged.parts} parts, not {parts}"
    elif staged.request != request:
        cause = "of other sources or options"
    elif staged.max_bad_share != options.max_bad_share:
        cause = f"with --max-bad-share {staged.max_bad_share}"
    else:
        return staged
    raise ValueError(
        f"{out} was begun {cause}: run all parts alike, choose another --out, or delete it"
    )


def load_staged_input(out: Path) -> StagedInput:
    """The input of a set in parts; ValueError where there is none or another version stored it."""
    path = out / PARTS_FOLDER / STAGED_INPUT
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{out} holds no parts: run bytelm prepare --part first") from error
    own_version = version("bytelm")
    if values["version"] != own_version:
        raise ValueError(
            f"the parts in {out} were made by bytelm {values['version']}, and this is "
            f"{own_version}: use one version for all"
        )
    items = [WorkItem(*item) for item in values["items"]]
    documents = StoredDocuments(path.with_name(DOCUMENTS), items, values["lines"])
    listed = PrepareInput(
        _found(values["found"], documents),
        [_unit(unit) for unit in values["units"]],
        values["input_hash"],
        values["fingerprint"],
    )
    return StagedInput(
        listed=listed,
        items=items,
        request=values["request"],
        parts=values["parts"],
        shard_bytes=values["shard_bytes"],
        max_bad_share=values["max_bad_share"],
    )


@contextmanager
def _listing(folder: Path, console: Console | None) -> Iterator[None]:
    """Wait for a part that lists the sources, if any, and let the next ones wait for this one.

    Where the sources are refused, an empty folder is removed, so that it can be used otherwise.
    """
    path = folder / "listing.lock"
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if console:
                console.print("another part lists the sources: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        except ValueError:
            with suppress(OSError):  # the folder has other files
                path.unlink()
                folder.rmdir()
                folder.parent.rmdir()
            raise


def _request(sources: Sequence[str | Path], options: PrepareOptions) -> str:
    """SHA-256 over the names of the sources, as all machines see them, and the options."""
    names = [s if "://" in str(s) else os.path.abspath(s) for s in map(str, sources)]
    captions = load_captions(options.captions).sha256 if options.captions else None
    values = asdict(replace(options, workers=1, captions=None, max_bad_share=0.0))
    return hashlib.sha256(json.dumps([names, captions, values], default=str).encode()).hexdigest()


def _store(
    folder: Path, listed: PrepareInput, request: str, options: PrepareOptions, parts: int
) -> None:
    """Write the documents, then the file that says that the sources are listed."""
    documents = listed.found.documents
    items = work_items(documents, listed.units)
    lines: list[int] = []

    def write_documents(path: Path) -> None:
        with open(path, "wb") as file:
            for item in items:
                if not item.is_table:
                    lines.append(file.tell())
                    file.write(json.dumps(documents[item.first : item.stop]).encode() + b"\n")

    replace_atomic(folder / DOCUMENTS, write_documents)
    found = asdict(replace(listed.found, documents=[], tables=[], caption_columns=frozenset()))
    content = {
        "version": version("bytelm"),
        "request": request,
        "parts": parts,
        "shard_bytes": options.shard_bytes,
        "max_bad_share": options.max_bad_share,
        "input_hash": listed.input_hash,
        "fingerprint": listed.fingerprint,
        "found": {**found, "caption_columns": []},
        "units": listed.units,
        "items": items,
        "lines": lines,
    }
    write_atomic(folder / STAGED_INPUT, json.dumps(content).encode())


def _found(values: dict[str, Any], documents: Sequence[SourceDocument]) -> FoundDocuments:
    skipped = [SkippedFile(**entry) for entry in values["skipped"]]
    notes = [(name, note) for name, note in values["notes"]]
    changed = {
        "documents": documents,
        "skipped": skipped,
        "notes": notes,
        "caption_columns": frozenset(),
    }
    return FoundDocuments(**{**values, **changed})


def _unit(values: list[Any]) -> TableUnit:
    unit = TableUnit(*values)
    return unit._replace(
        format=TableFormat(*unit.format),
        fields=TableFields(*unit.fields),
        moved=tuple((row, split) for row, split in unit.moved),
    )
