"""`bytelm prepare`: files become a shard set.

    SET/.prepare.json    while a set is being made: what is done; gone when the set is complete

One process writes, and the documents come to it in the set's order, so the set is the same for
any number of decoding workers. Each finished shard is final; a prepare that was interrupted goes
on after the last of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare.decode_pool import Decoded, Decoders
from bytelm.pipelines.prepare.download import fetch_sources
from bytelm.pipelines.prepare.progress import Meter
from bytelm.pipelines.prepare.sources import (
    NOT_BAD,
    Captions,
    FoundDocuments,
    Skip,
    SourceDocument,
    count_reasons,
    find_documents,
    load_captions,
)
from bytelm.pipelines.shards.format import SET_FORMAT, SET_MANIFEST, SPLITS, Shard
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import ShardWriter, write_set_manifest
from bytelm.pipelines.storage.files import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

STATE = ".prepare.json"

_OWN_FILE = re.compile(
    rf"(({'|'.join(SPLITS)})-\d{{6}}\.(tar|npy)|{re.escape(SET_MANIFEST)}|{re.escape(STATE)})((\.\d+)?\.tmp)?"
)


@dataclass(frozen=True)
class PrepareOptions:
    """How files become a shard set."""

    decode: DecodeOptions = field(default_factory=DecodeOptions)
    workers: int = 1
    """Decoding processes, beside the process that writes."""
    shard_bytes: int = 256_000_000
    """A shard is closed before it grows larger than this; a larger document has its own."""
    captions: Path | None = None
    """JSON object: file name, relative to its source or to this file's folder, to caption."""
    shares: tuple[float, float, float] = (0.9, 0.05, 0.05)
    """Of train, val and test; files below a source's own `train`, `val` and `test` stay there."""
    max_bad_share: float = 0.5
    """More bad files than this share of all files are an error."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}, and must be at least 1")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes is {self.shard_bytes}, and must be at least 1")
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(
                f"the shares of train, val and test are {self.shares}; they add up to 1"
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
class Prepared:
    """A complete set."""

    root: str
    """The root hash of its content."""
    report: dict[str, Any]
    """The manifest's report: files, documents and bytes, and what was skipped."""
    made: bool
    """False where the set was there already, complete and of the same input."""


@dataclass
class _State:
    """What is done: the content of the state file."""

    fingerprint: str
    done: int = 0
    """Documents that lie in `shards`, or gave nothing."""
    shards: list[Shard] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)

    def save(self, out: Path) -> None:
        write_atomic(out / STATE, json.dumps(asdict(self)).encode("utf-8", "surrogatepass"))

    @classmethod
    def load(cls, out: Path, fingerprint: str) -> _State:
        """What an earlier prepare of the same input left, and whole; otherwise a fresh start."""
        try:
            values = json.loads((out / STATE).read_bytes())
            state = cls(
                fingerprint=values["fingerprint"],
                done=values["done"],
                shards=[Shard(**s) for s in values["shards"]],
                skipped=[Skip(**s) for s in values["skipped"]],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return cls(fingerprint)
        whole = all(_is_whole(out, s) for s in state.shards)
        return state if state.fingerprint == fingerprint and whole else cls(fingerprint)


def prepare(
    sources: Sequence[str | Path],
    out: Path,
    options: PrepareOptions,
    console: Console | None = None,
) -> Prepared:
    """Make a shard set of files.

    Args:
        sources: files and folders, tars by pattern, and tars at URLs.
        out: the set's folder; made if need be.
        console: where progress is shown; None shows nothing.
    Returns:
        the complete set; made anew, gone on with, or found complete.
    Raises:
        ValueError: where no source exists, nothing could be used, more than `max_bad_share` of
            the files were bad, or `out` holds something else.
    """
    fetched = out.with_name(f"{out.name}.sources")
    local = fetch_sources(sources, fetched)
    with Decoders(options.decode, options.workers) as decoders:
        prepared = _prepare(local, out, options, decoders, console)
    shutil.rmtree(fetched, ignore_errors=True)
    return prepared


def _prepare(
    sources: Sequence[Path],
    out: Path,
    options: PrepareOptions,
    decoders: Decoders,
    console: Console | None,
) -> Prepared:
    captions = load_captions(options.captions) if options.captions else None
    limit = options.decode.limits.max_bytes
    found = find_documents(sources, captions, options.shares, limit, out)
    input_hash = _input_hash(found, options, captions)
    if (out / SET_MANIFEST).exists():
        return _complete(out, found, input_hash)
    _check_share(found, found.skipped, options)
    if not found.documents:
        raise ValueError(f"nothing to prepare: {_reasons(found.skipped)}")
    with _folder(out):
        fingerprint = hashlib.sha256((input_hash + found.times_hash).encode()).hexdigest()
        state = _State.load(out, fingerprint)
        _clear(out, keep=state.shards)
        state.save(out)
        with Meter(console, len(found.documents), state.done) as meter:
            _write_shards(found, out, options, state, decoders, meter)
        skipped = sorted(found.skipped + state.skipped)
        _check_share(found, skipped, options)
        if not state.shards:
            _clear(out, keep=[])
            raise ValueError(f"nothing to prepare: {_reasons(skipped)}")
        report = {"input": input_hash, **_counts(found, state.shards), **_skips(skipped)}
        write_set_manifest(out, state.shards, report)
        (out / STATE).unlink()
    return Prepared(ShardSet(out).root, report, made=True)


def summary(prepared: Prepared, out: Path) -> str:
    """What was prepared, in lines for people."""
    report = prepared.report
    lines = [
        f"{out} {'holds' if prepared.made else 'is complete already and holds'} "
        f"{report['documents']} documents of {report['files']} files, root {prepared.root[:16]}"
    ]
    for split, counts in report["splits"].items():
        sizes = ", ".join(f"{n / 1e6:.1f} MB {m}" for m, n in counts["bytes"].items() if n)
        lines.append(
            f"  {split}: {counts['documents']} documents" + (f", {sizes}" if sizes else "")
        )
    if report["skipped"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in report["skipped"].items())
        lines.append(f"  skipped: {reasons}; named in {out / SET_MANIFEST}")
    return "\n".join(lines)


def _write_shards(
    found: FoundDocuments,
    out: Path,
    options: PrepareOptions,
    state: _State,
    decoders: Decoders,
    meter: Meter,
) -> None:
    """Decode the documents that are not done yet, and write them. A full shard is finished by a
    thread while the next one grows; the state is saved with each finished shard."""
    first = state.done
    documents = found.documents[first:]
    numbers = Counter(s.split for s in state.shards)
    writer: ShardWriter | None = None
    finishing: _Finishing | None = None
    skipped: list[Skip] = []  # by the documents since the last full shard
    with ThreadPoolExecutor(max_workers=1) as thread:
        for i, (document, decoded) in enumerate(
            zip(documents, decoders.decode(documents), strict=True)
        ):
            if writer and decoded.samples and _ends_shard(writer, document, decoded, options):
                if finishing:
                    finishing.settle(state, out)
                finishing = _Finishing(thread.submit(writer.close), first + i, skipped)
                writer, skipped = None, []
            if decoded.samples:
                if writer is None:
                    writer = ShardWriter(out, document.split, numbers[document.split])
                    numbers[document.split] += 1
                writer.add(document.key, decoded.sources, decoded.samples)
            skipped += decoded.skipped
            meter.advance(decoded.size)
        if finishing:
            finishing.settle(state, out)
        if writer:
            last = _Finishing(thread.submit(writer.close), len(found.documents), skipped)
            last.settle(state, out)
        else:
            state.skipped += skipped


@dataclass
class _Finishing:
    """A full shard that a thread is finishing."""

    shard: Future[Shard]
    done: int
    """Documents up to its end."""
    skipped: list[Skip]

    def settle(self, state: _State, out: Path) -> None:
        """Wait until the shard is final, and save that it is."""
        state.shards.append(self.shard.result())
        state.skipped += self.skipped
        state.done = self.done
        state.save(out)


def _ends_shard(
    writer: ShardWriter, document: SourceDocument, decoded: Decoded, options: PrepareOptions
) -> bool:
    """Whether a document has to begin another shard."""
    full = writer.size + decoded.size > options.shard_bytes
    return full or writer.split != document.split


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """The set's folder, made if need be, held against other prepares, and free of other things."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no folder: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    others = sorted(p.name for p in out.iterdir() if not _OWN_FILE.fullmatch(p.name))
    unfinished = any(out.glob(f"{STATE}*"))
    if others or (any(out.iterdir()) and not unfinished):
        name = others[0] if others else min(p.name for p in out.iterdir())
        raise ValueError(f"{out} holds other things ({name}): choose an empty folder as --out")
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another prepare is writing {out}: wait for it to end") from error
        yield
    finally:
        os.close(descriptor)


def _clear(out: Path, keep: Sequence[Shard]) -> None:
    """Remove what an interrupted prepare left, but for finished shards."""
    kept = {name for shard in keep for name in (shard.name, shard.index_name)}
    for path in out.iterdir():
        if path.name not in kept:
            path.unlink()


def _is_whole(out: Path, shard: Shard) -> bool:
    """Whether a finished shard is still there, with the size and the index that it had."""
    tar, index = out / shard.name, out / shard.index_name
    if not tar.is_file() or tar.stat().st_size != shard.size or not index.is_file():
        return False
    return hashlib.sha256(index.read_bytes()).hexdigest() == shard.index_sha256


def _complete(out: Path, found: FoundDocuments, input_hash: str) -> Prepared:
    """The set that is there already; ValueError where it is of other input."""
    shard_set = ShardSet(out)
    changed = (out / SET_MANIFEST).stat().st_mtime_ns < found.newest_ns
    if shard_set.report.get("input") != input_hash or changed:
        why = "its files changed since" if changed else "made of other files or options"
        raise ValueError(f"{out} holds a set already, {why}: choose another --out, or delete it")
    (out / STATE).unlink(missing_ok=True)
    return Prepared(shard_set.root, shard_set.report, made=False)


def _input_hash(found: FoundDocuments, options: PrepareOptions, captions: Captions | None) -> str:
    """SHA-256 over the files' names and sizes and every option that the set depends on."""
    content = replace(options, workers=1, captions=None, max_bad_share=0.0)
    parts = [SET_FORMAT, found.names_hash, asdict(content), captions.sha256 if captions else None]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _check_share(found: FoundDocuments, skipped: Sequence[Skip], options: PrepareOptions) -> None:
    """ValueError where too many files are bad."""
    bad = sum(s.reason not in NOT_BAD for s in skipped)
    if bad > options.max_bad_share * max(found.files, 1):
        share = f"{options.max_bad_share:.0%}"
        raise ValueError(
            f"{bad} of {found.files} files are bad, more than {share}: {_reasons(skipped)}; mend "
            "or remove them, or allow more with --max-bad-share"
        )


def _reasons(skipped: Sequence[Skip]) -> str:
    """Counts by reason, and the first name of each."""
    first = {s.reason: s.name for s in sorted(skipped, reverse=True)}
    counts = count_reasons(skipped)
    return ", ".join(f"{n} {r} ({first[r]})" for r, n in counts.items()) or "the sources are empty"


def _counts(found: FoundDocuments, shards: Sequence[Shard]) -> dict[str, Any]:
    """Documents and bytes of the set and of each split."""
    splits: dict[str, Any] = {}
    for shard in shards:
        counts = splits.setdefault(shard.split, {"documents": 0, "bytes": {}})
        counts["documents"] += shard.documents
        for modality, size in shard.bytes.items():
            counts["bytes"][modality] = counts["bytes"].get(modality, 0) + size
    documents = sum(s.documents for s in shards)
    return {"files": found.files, "documents": documents, "splits": splits}


def _skips(skipped: Sequence[Skip]) -> dict[str, Any]:
    """What was skipped: counts by reason, and every name."""
    return {"skipped": count_reasons(skipped), "skipped_files": [asdict(s) for s in skipped]}
