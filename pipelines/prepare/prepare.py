"""`bytelm prepare`: make a shard set of files.

One process writes, and the documents come to it in the set's order, so the set is the same for any
number of decoding workers. Each finished shard is final; an interrupted `prepare` is resumed after
the last one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare.captions import Captions, load_captions
from bytelm.pipelines.prepare.container_reader import ContainerReader
from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.documents import SkippedFile, SourceDocument
from bytelm.pipelines.prepare.download import download_sources, downloads_folder
from bytelm.pipelines.prepare.losses import check_losses, count_losses, list_reasons
from bytelm.pipelines.prepare.patterns import NamePatterns
from bytelm.pipelines.prepare.progress import PrepareProgress
from bytelm.pipelines.prepare.report import set_report
from bytelm.pipelines.prepare.scan import Source
from bytelm.pipelines.prepare.set_folder import SKIPPED_LIST
from bytelm.pipelines.prepare.set_target import FolderTarget, SetTarget, open_target
from bytelm.pipelines.prepare.set_writer import SetWriter
from bytelm.pipelines.prepare.shard_limits import check_shard_count
from bytelm.pipelines.prepare.sources import FoundDocuments, find_documents
from bytelm.pipelines.prepare.table_pool import TablePosition
from bytelm.pipelines.prepare.table_scan import TableScan
from bytelm.pipelines.prepare.tables import TableFields, TableUnit
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.shards.format import SET_MANIFEST, SHARD_FORMAT, Shard
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.set_summary import content_lines, counted, split_lines

if TYPE_CHECKING:
    from rich.console import Console

_LATER_OPTIONS = ("include", "exclude", "fields")
"""Options that are no part of the input's hash where they are not given."""


@dataclass(frozen=True)
class PrepareOptions:
    """How files become a shard set. ValueError where an option is out of its range.

    The field names are part of the input's hash, which stands in manifests.
    """

    decode: DecodeOptions = field(default_factory=DecodeOptions)
    workers: int = 1
    """Decoding processes, beside the process that writes."""
    shard_bytes: int = 256_000_000
    """A shard is closed before it grows larger than this; a larger document has its own."""
    captions: Path | None = None
    """JSON object from file names, relative to their source or to this file's folder, to
    captions."""
    shares: tuple[float, float, float] = (0.9, 0.05, 0.05)
    """Shares of train, val and test, for documents whose split no name says."""
    max_bad_share: float = 0.5
    """Largest share that may be lost: of the files, of their bytes, and of the pairs."""
    include: tuple[str, ...] = ()
    """Patterns of names, one of which a file must match; empty lets all files in."""
    exclude: tuple[str, ...] = ()
    """Patterns of names that no file may match."""
    fields: TableFields = field(default_factory=TableFields)
    """Columns of tables that hold the parts of documents; those not named are guessed."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}, and must be at least 1")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes is {self.shard_bytes}, and must be at least 1")
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(
                f"the shares of train, val and test are {self.shares}; they must add up to 1"
            )
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}, and must be 0 to 1")
        if self.decode.audio_channels not in (None, 1):
            raise ValueError(
                f"audio_channels is {self.decode.audio_channels}; choose 1 for mono, or none to "
                "keep each file's own"
            )
        if self.decode.audio_rate is not None and self.decode.audio_rate < 1:
            raise ValueError(f"audio_rate is {self.decode.audio_rate}, and must be at least 1")


@dataclass(frozen=True)
class PrepareInput:
    """The listed sources of a set."""

    found: FoundDocuments
    """Documents of files."""
    units: list[TableUnit]
    """Parts of tables."""
    input_hash: str
    """Identifies the sources by name and size, and the options."""
    fingerprint: str
    """Identifies them by time too, and the order of the documents."""


@dataclass(frozen=True)
class Prepared:
    """A complete set."""

    root: str
    """The root hash of its content."""
    report: dict[str, Any]
    """The manifest's report: files, documents and bytes, and what was skipped."""
    made: bool
    """False where the set was complete already, and of the same input."""


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    options: PrepareOptions,
    console: Console | None = None,
) -> Prepared:
    """Make a shard set of files.

    A set that was interrupted is resumed, and one that is complete is left as it is, where sources
    and options are the same.

    Args:
        sources: files, folders, tars in WebDataset's layout, and tables. A tar or table can be a
            path or a URL, and a pattern with braces names many: `part-{000..012}.tar`.
        out: the set's folder, created where it is missing, or its URL (s3, gs, az, hf, file).
        options: how files are decoded, split and laid into shards.
        console: shows the progress; None shows nothing.
    Returns:
        the root hash and the report of the complete set, and whether this call made it.
    Raises:
        ValueError: where no source exists, a URL cannot be downloaded, the captions file is none,
            no file could be used, more than `max_bad_share` of the sources is lost, `out` holds
            other things or a set of another input, or another prepare is writing it.
        DamageError: where `out` holds a complete set whose manifest is damaged.
        RuntimeError: where decoding processes do not start.
        OSError: where the disk or the store does not take the set.
    """
    target = open_target(out)
    downloads = downloads_folder(target.folder)
    found_sources = download_sources(sources, downloads, ContainerReader())
    with DecodePool(options.decode, options.workers) as pool:  # starts while sources are scanned
        prepared = _prepare(found_sources, target, options, pool, console)
    shutil.rmtree(downloads, ignore_errors=True)
    return prepared


def summary(prepared: Prepared, out: str | Path) -> str:
    """Describe a set: its documents and bytes, what they were made of, and what was skipped."""
    report = prepared.report
    state = "" if prepared.made else ", complete already"
    lines = [
        f"{out}: {counted(report['documents'], 'document')} from "
        f"{counted(report['files'], 'file')}, "
        f"root {prepared.root[:16]}{state}",
        *split_lines(report),
        *content_lines(report),
    ]
    if report["skipped"]:
        has_list = report.get("skipped_unnamed")
        lines.append(f"each is named in {out}/{SKIPPED_LIST if has_list else SET_MANIFEST}")
    return "\n  ".join(lines)


def _prepare(
    sources: Sequence[Source],
    target: SetTarget,
    options: PrepareOptions,
    pool: DecodePool,
    console: Console | None,
) -> Prepared:
    """Make a set of local sources, or find it complete."""
    listed = list_input(sources, target.folder, options, ContainerReader())
    found, units = listed.found, listed.units
    if (shard_set := target.complete_set()) is not None:
        return _same_set(shard_set, listed, target.is_older(found.newest_ns))
    check_input(listed, options)
    with target.held():
        state = target.resume(listed.fingerprint)
        with (
            PrepareProgress(console, len(found.documents), state.done) as progress,
            SetWriter(target, options.shard_bytes, state) as writer,
        ):
            _write_files(found.documents[state.done :], pool, writer, progress)
            if units:
                position = state.tables.position
                _write_rows(units, position, options.shares, pool, writer, progress)
        if not state.shards:
            target.clear()
        skipped = sorted(found.skipped + state.skipped + state.tables.skipped(units))
        report = finish_report(
            listed, state.shards, skipped, state.tally, state.tables.rows, options.max_bad_share
        )
        root = target.publish(state.shards, report, skipped)
    return Prepared(root, report, made=True)


def list_input(
    sources: Sequence[Source], out: Path, options: PrepareOptions, reader: ContainerReader
) -> PrepareInput:
    """List local sources, whose tars and tables `reader` reads; see `prepare` for the errors."""
    captions = load_captions(options.captions) if options.captions else None
    found, units = _find(sources, captions, out, options, reader)
    input_hash = _input_hash(found, options, captions)
    return PrepareInput(found, units, input_hash, _fingerprint(found, input_hash))


def check_input(listed: PrepareInput, options: PrepareOptions) -> None:
    """Raise ValueError where nothing is to be decoded, or too much for the numbers of shards, or
    too much is lost already."""
    skipped = listed.found.skipped
    check_losses(count_losses(listed.found, skipped), skipped, options.max_bad_share)
    rows = sum(unit.size for unit in listed.units)  # nobody knows them yet, but each has a byte
    shards = len(listed.found.documents) + rows
    check_shard_count(shards, listed.found.size, options.shard_bytes)
    if not listed.found.documents and not listed.units:
        raise ValueError(f"nothing to prepare: {list_reasons(skipped)}")


def finish_report(
    listed: PrepareInput,
    shards: Sequence[Shard],
    skipped: Sequence[SkippedFile],
    tally: Tally,
    rows: int,
    max_bad_share: float,
) -> dict[str, Any]:
    """The report of a set whose shards are written.

    Args:
        listed: the input.
        shards: all shards of the set.
        skipped: what did not become part of a document, sorted.
        tally: counts over all documents, to which the notes of the listing are added.
        rows: rows of tables.
        max_bad_share: see PrepareOptions.
    Raises:
        ValueError: where too much is lost, or there is no document.
    """
    found = replace(listed.found, files=listed.found.files + rows)
    losses = count_losses(found, skipped)
    check_losses(losses, skipped, max_bad_share)
    if not shards:
        raise ValueError(f"nothing to prepare: {list_reasons(skipped)}")
    for name, note in found.notes:
        tally.add_note(note, 1, [name])
    return set_report(
        listed.input_hash,
        found.files,
        shards,
        skipped,
        tally=tally,
        remarks=found.remarks,
        losses=losses,
    )


def _find(
    sources: Sequence[Source],
    captions: Captions | None,
    out: Path,
    options: PrepareOptions,
    reader: ContainerReader,
) -> tuple[FoundDocuments, list[TableUnit]]:
    """The documents of files, and the units of tables."""
    patterns = NamePatterns(options.include, options.exclude)
    scan = TableScan(options.fields, reader)
    found = find_documents(
        sources,
        captions,
        options.shares,
        options.decode.limits.max_bytes,
        out,
        patterns,
        reader,
        scan.find_tables,
        options.fields.text,
    )
    scan.check_named(found.caption_columns)
    units = scan.units(found.tables, options.shares, (d.split for d in found.documents))
    return replace(found, skipped=[*found.skipped, *scan.skipped]), units


def _write_files(
    documents: Sequence[SourceDocument],
    pool: DecodePool,
    writer: SetWriter,
    progress: PrepareProgress,
) -> None:
    """Decode and write documents of files, and close their last shard."""
    for document, decoded in zip(documents, pool.decode_documents(documents), strict=True):
        writer.add(document, decoded)
        progress.advance(decoded.size)
    writer.close_shards()


def _write_rows(
    units: Sequence[TableUnit],
    position: TablePosition,
    shares: tuple[float, float, float],
    pool: DecodePool,
    writer: SetWriter,
    progress: PrepareProgress,
) -> None:
    """Decode and write the rows of tables from a position on."""
    progress.begin_tables([unit.size for unit in units], position.first_unit)
    for number, part in pool.decode_tables(units, position, shares):
        writer.add_rows(number, units[number], part)
        progress.advance_tables(units[number].size if part.is_end else 0, part.size)


def complete_set(out: Path, listed: PrepareInput) -> Prepared:
    """The set that is in `out` already; ValueError where it is of another input."""
    target = FolderTarget(out)
    shard_set = target.complete_set()
    assert shard_set is not None, "the caller has found the manifest"
    return _same_set(shard_set, listed, target.is_older(listed.found.newest_ns))


def _same_set(shard_set: ShardSet, listed: PrepareInput, is_older: bool) -> Prepared:
    """A complete set; ValueError where it is of another input.

    Args:
        shard_set: the set.
        listed: the input.
        is_older: whether a source has changed since the set was made.
    """
    if shard_set.report.get("input") != listed.input_hash or is_older:
        cause = "its files changed since" if is_older else "made of other files or options"
        raise ValueError(
            f"{shard_set.location} holds a set already, {cause}: choose another --out, or delete it"
        )
    return Prepared(shard_set.root, shard_set.report, made=False)


def _fingerprint(found: FoundDocuments, input_hash: str) -> str:
    """SHA-256 over the input and the order of its documents, in which a version with other rules
    cannot go on."""
    digest = hashlib.sha256((input_hash + found.times_hash).encode())
    for document in found.documents:
        digest.update(f"{document.split}/{document.key}\n".encode())
    return digest.hexdigest()


def _input_hash(found: FoundDocuments, options: PrepareOptions, captions: Captions | None) -> str:
    """SHA-256 over the files' names and sizes and every option that the set depends on."""
    content = asdict(replace(options, workers=1, captions=None, max_bad_share=0.0))
    for name in _LATER_OPTIONS:
        if not any(content[name]):  # so that sets made before it are still found
            del content[name]
    if not content["decode"]["keep_depth"]:
        del content["decode"]["keep_depth"]
    parts = [SHARD_FORMAT, found.names_hash, content, captions.sha256 if captions else None]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
