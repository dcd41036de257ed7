"""`bytelm inspect`: what a shard set holds, whether it is whole, and its documents as files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bytelm.modalities import BY_CODE
from bytelm.modalities.base import Modality
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.runtime.progress import tracked
from bytelm.pipelines.runtime.tables import print_table
from bytelm.pipelines.shards.format import SPLITS, Index, Shard
from bytelm.pipelines.shards.reader import ShardSet, open_set
from bytelm.pipelines.shards.set_summary import content_lines, size_text


def inspect(
    location: str,
    *,
    verify: bool,
    extract: int | None,
    out: Path | None,
    as_json: bool,
    console: Console,
) -> int:
    """Show what a set holds.

    Args:
        location: path or URL of the set.
        verify: check every hash first, and name every damaged shard.
        extract: number of documents of each modality to write as files.
        out: folder for those files.
        as_json: show `set_summary`, with the `damage` and the `extracted` files, in place of text.
        console: shows the results.
    Returns:
        the exit status: 0, or 1 where `verify` found damage.
    Raises:
        ValueError: for a folder that is no set, or `extract` without `out`.
        DamageError: for a damaged index or document, without `verify`.
    """
    if extract is not None and extract < 1:
        raise ValueError(f"--extract is {extract}, and must be at least 1")
    if extract and out is None:
        raise ValueError("--extract needs --out: the folder to write documents to")
    shard_set = open_set(location)
    damage = set_damage(shard_set) if verify else []
    if verify and not as_json:
        _show_damage(shard_set, damage, console)
    if damage:
        if as_json:
            _print_json(console, {"location": location, "root": shard_set.root, "damage": damage})
        return 1
    if not as_json:
        show(shard_set, console)
    extracted = extract_documents(shard_set, extract, out) if extract and out else []
    if as_json:
        files = [str(path) for path in extracted]
        _print_json(console, {**set_summary(shard_set), "damage": damage, "extracted": files})
    else:
        for path in extracted:
            _print(console, str(path))
    return 0


def show(shard_set: ShardSet, console: Console) -> None:
    """Print documents, segments, bytes and lengths of each split, and what `prepare` skipped."""
    summary = set_summary(shard_set)
    _print(console, shard_set.location)
    _print(console, f"root {shard_set.root}")
    counts = (f"{part['documents']:,} in {split}" for split, part in summary["splits"].items())
    _print(console, f"documents: {', '.join(counts)}")
    print_table(console, _table(summary["splits"]))
    for line in content_lines(shard_set.report):
        _print(console, line)


def set_summary(shard_set: ShardSet) -> dict[str, Any]:
    """The content of a set, in values of JSON.

    Returns:
        `location`; `root`; `splits`: the documents of each split, and for each of its modalities
        the number, the bytes and the least, median and largest size in bytes of its segments; and
        the `report` of `prepare`.
    Raises:
        DamageError: for a damaged index.
    """
    splits = {}
    for split in SPLITS:
        shards = shard_set.split(split)
        splits[split] = {
            "documents": shard_set.counts(split).documents,
            "modalities": {
                modality: {
                    "segments": sizes.size,
                    "bytes": int(sizes.sum()),
                    "min": int(sizes.min()),
                    "median": int(np.median(sizes)),
                    "max": int(sizes.max()),
                }
                for modality, sizes in _segment_sizes(shard_set, shards).items()
            },
        }
    return {
        "location": shard_set.location,
        "root": shard_set.root,
        "splits": splits,
        "report": shard_set.report,
    }


def set_damage(shard_set: ShardSet) -> list[str]:
    """Check every byte of every shard, and return a line for each damaged one."""
    damage: list[str] = []
    shards = shard_set.one_by_one(shard_set.shards)
    for shard in tracked(shards, len(shard_set.shards), "shards"):
        try:
            shard_set.verify(shard)
        except DamageError as error:
            damage.append(f"{shard.name}: {error}")
    return damage


def extract_documents(shard_set: ShardSet, count: int, out: Path) -> list[Path]:
    """Write documents as PNG, WAV and TXT files named by their keys, all segments of each.

    Args:
        count: documents of each modality, spread evenly over the set; all where there are fewer.
        out: the folder, created where it is missing.
    Returns:
        the paths of the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, set[int]] = {}  # documents by shard
    for modality in BY_CODE:
        documents = list(_documents_with(modality, shard_set))
        numbers = np.linspace(0, len(documents) - 1, min(count, len(documents))).astype(int)
        for shard_name, document in (documents[number] for number in numbers):
            chosen.setdefault(shard_name, set()).add(document)
    shards = [s for s in shard_set.shards if s.name in chosen]
    return [
        path
        for shard in shard_set.one_by_one(shards)
        for document in sorted(chosen[shard.name])
        for path in _write_document(shard_set, shard, document, out)
    ]


def _show_damage(shard_set: ShardSet, damage: list[str], console: Console) -> None:
    """Print each damaged shard and how many are whole."""
    for line in damage:
        _print(console, line, style="red")
    shards = len(shard_set.shards)
    _print(console, f"{shards - len(damage)} of {shards} shards whole")


def _print_json(console: Console, values: dict[str, Any]) -> None:
    _print(console, json.dumps(values, indent=1))


def _print(console: Console, line: str, style: str | None = None) -> None:
    """Print a line as it is: names may hold brackets and colons, and are not broken."""
    console.print(line, style=style, soft_wrap=True, markup=False, emoji=False, highlight=False)


def _table(splits: dict[str, Any]) -> Table:
    """Segments, bytes and lengths of each split and modality."""
    table = Table("split", "modality", "segments", "size", "min", "median", "max", box=SIMPLE)
    for column in table.columns[2:]:
        column.justify = "right"
    for split, part in splits.items():
        for modality, figures in part["modalities"].items():
            sizes = (size_text(figures[name]) for name in ("bytes", "min", "median", "max"))
            table.add_row(split, modality, f"{figures['segments']:,}", *sizes)
    return table


def _segment_sizes(
    shard_set: ShardSet, shards: Sequence[Shard]
) -> dict[str, npt.NDArray[np.uint64]]:
    """[segments] stored bytes of each segment, by modality; modalities without any are absent."""
    indexes: list[Index] = [shard_set.index(shard) for shard in shards]
    sizes = {
        m.name: np.concatenate([i["size"][i["modality"] == m.code] for i in indexes])
        for m in BY_CODE
        if indexes
    }
    return {modality: lengths for modality, lengths in sizes.items() if lengths.size}


def _documents_with(modality: Modality, shard_set: ShardSet) -> Iterator[tuple[str, int]]:
    """Shard name and ordinal of each document that has a segment of a modality."""
    for shard in shard_set.shards:
        index = shard_set.index(shard)
        for document in np.unique(index["document"][index["modality"] == modality.code]):
            yield shard.name, int(document)


def _write_document(shard_set: ShardSet, shard: Shard, document: int, out: Path) -> Iterator[Path]:
    index = shard_set.index(shard)
    rows = index[index["document"] == document]
    has_equal_modalities = len(np.unique(rows["modality"])) < len(rows)
    for i, row in enumerate(rows):
        key = shard_set.key(shard, row)
        stem = out / (f"{key}.{i}" if has_equal_modalities else key)
        yield BY_CODE[row["modality"]].write_file(shard_set.sample(shard, row), stem)
