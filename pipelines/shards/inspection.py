"""`bytelm inspect`: what a shard set holds, whether it is whole, and documents as files again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bytelm.modalities import BY_CODE
from bytelm.modalities.base import Modality
from bytelm.pipelines.shards.format import SPLITS, Index, Shard
from bytelm.pipelines.shards.reader import DamageError, ShardSet, open_set


def inspect(
    location: str, *, verify: bool, sample: int | None, out: Path | None, console: Console
) -> int:
    """Show what a set holds.

    Args:
        location: path or URL of the set.
        verify: check every hash first, and name every shard that is damaged.
        sample: write so many documents of each modality back as files.
        out: where to.
    Returns:
        the exit status: 0, or 1 where `verify` found damage.
    Raises:
        ValueError: for a folder that is no set, or `sample` without `out`.
        DamageError: for an index or a document that is damaged, without `verify`.
    """
    if sample is not None and sample < 1:
        raise ValueError(f"--extract is {sample}, and must be at least 1")
    if sample and out is None:
        raise ValueError("--extract needs --out: the folder to write documents to")
    shard_set = open_set(location)
    if verify:
        damage = set_damage(shard_set)
        for line in damage:
            console.print(line, style="red", soft_wrap=True, markup=False, highlight=False)
        console.print(
            f"{len(shard_set.shards) - len(damage)} of {len(shard_set.shards)} shards whole"
        )
        if damage:
            return 1
    show(shard_set, console)
    if sample and out:
        for path in write_samples(shard_set, sample, out):
            console.print(str(path), soft_wrap=True, markup=False, highlight=False)
    return 0


def set_damage(shard_set: ShardSet) -> list[str]:
    """Check every byte of every shard; a line for each damaged one."""
    damage: list[str] = []
    for shard in shard_set.one_by_one(shard_set.shards):
        try:
            shard_set.verify(shard)
        except DamageError as error:
            damage.append(f"{shard.name}: {error}")
    return damage


def show(shard_set: ShardSet, console: Console) -> None:
    """Print documents, segments, stored bytes and lengths of each split, and what was skipped."""
    console.print(f"{shard_set.location}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"root {shard_set.root}", soft_wrap=True, highlight=False)
    documents = {s: sum(d.documents for d in shard_set.split(s)) for s in SPLITS}
    counts = ", ".join(f"{n:,} in {split}" for split, n in documents.items())
    console.print(f"documents: {counts}", soft_wrap=True, highlight=False)
    table = Table("split", "modality", "segments", "bytes", "min", "median", "max", box=SIMPLE)
    for column in table.columns[2:]:
        column.justify = "right"
    for split in SPLITS:
        for modality, lengths in _sizes(shard_set, shard_set.split(split)).items():
            figures = (
                lengths.size,
                int(lengths.sum()),
                int(lengths.min()),
                int(np.median(lengths)),
                int(lengths.max()),
            )
            table.add_row(split, modality, *(f"{n:,}" for n in figures))
    console.print(table)
    skipped = shard_set.report.get("skipped", {})
    if skipped:
        reasons = ", ".join(f"{n} {reason}" for reason, n in skipped.items())
        console.print(f"skipped: {reasons}", soft_wrap=True, highlight=False)


def write_samples(shard_set: ShardSet, count: int, out: Path) -> list[Path]:
    """Write `count` documents of each modality, spread evenly over the set, as PNG, WAV and TXT.

    All segments of a document are written, under its key. Returns the paths.
    """
    out.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, set[int]] = {}  # by shard, documents
    for modality in BY_CODE:
        holders = list(_documents_of(shard_set, modality))
        places = np.linspace(0, len(holders) - 1, min(count, len(holders))).astype(int)
        for name, document in (holders[place] for place in places):
            chosen.setdefault(name, set()).add(document)
    shards = [s for s in shard_set.shards if s.name in chosen]
    return [
        path
        for shard in shard_set.one_by_one(shards)
        for document in sorted(chosen[shard.name])
        for path in _write_document(shard_set, shard, document, out)
    ]


def _sizes(shard_set: ShardSet, shards: list[Shard]) -> dict[str, npt.NDArray[np.uint64]]:
    """Stored bytes of every segment, by modality."""
    indexes: list[Index] = [shard_set.index(shard) for shard in shards]
    sizes = {
        m.name: np.concatenate([i["size"][i["modality"] == m.code] for i in indexes])
        for m in BY_CODE
        if indexes
    }
    return {modality: lengths for modality, lengths in sizes.items() if lengths.size}


def _documents_of(shard_set: ShardSet, modality: Modality) -> Iterator[tuple[str, int]]:
    """(shard, document) of every document that has a segment of a modality."""
    for shard in shard_set.shards:
        index = shard_set.index(shard)
        for document in np.unique(index["document"][index["modality"] == modality.code]):
            yield shard.name, int(document)


def _write_document(shard_set: ShardSet, shard: Shard, document: int, out: Path) -> Iterator[Path]:
    index = shard_set.index(shard)
    rows = index[index["document"] == document]
    repeated = len(np.unique(rows["modality"])) < len(rows)
    for i, row in enumerate(rows):
        key = shard_set.key(shard, row)
        stem = out / (f"{key}.{i}" if repeated else key)
        yield BY_CODE[row["modality"]].write(shard_set.sample(shard, row), stem)
