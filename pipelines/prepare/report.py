"""The report of `prepare`, which stands in the set's manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bytelm.pipelines.prepare.documents import SkippedFile, count_reasons
from bytelm.pipelines.prepare.losses import Losses, group_reasons
from bytelm.pipelines.prepare.set_folder import SKIPPED_LIST
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.shards.format import Shard
from bytelm.pipelines.storage.files import write_atomic

MAX_NAMED = 10_000
"""Skipped files that a manifest names; a longer list stands in a file of its own."""


def set_report(
    input_hash: str,
    files: int,
    shards: Sequence[Shard],
    skipped: Sequence[SkippedFile],
    *,
    tally: Tally,
    remarks: Sequence[str],
    losses: Losses,
) -> dict[str, Any]:
    """The report in a set's manifest.

    Args:
        input_hash: identifies the sources and options.
        files: files that were seen.
        shards: shards of the set.
        skipped: what did not become part of a document, sorted.
        tally: what became documents, and the notes about it.
        remarks: what was recognised in the sources, and how they were divided, in words.
        losses: how much was lost.
    Returns:
        `input`, `files`, `documents`; documents and bytes of each split; `taken`, the documents,
        bytes and suffixes of each modality; `pairs`, `remarks` and `notes`; how many files were
        skipped for each reason, the first MAX_NAMED of them, and how many more there are; the first
        names of each reason; and `lost`.
    """
    splits: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for shard in shards:
        counts = splits.setdefault(shard.split, {"documents": 0, "bytes": {}})
        counts["documents"] += shard.documents
        for modality, size in shard.bytes.items():
            counts["bytes"][modality] = counts["bytes"].get(modality, 0) + size
            sizes[modality] = sizes.get(modality, 0) + size
    return {
        "input": input_hash,
        "files": files,
        "documents": sum(s.documents for s in shards),
        "splits": splits,
        "taken": {
            modality: {"bytes": sizes[modality], "kinds": kinds}
            for modality, kinds in sorted(tally.taken.items())
        },
        "pairs": tally.pairs,
        "remarks": list(remarks),
        "notes": {
            note: {"count": count, "names": list(names)}
            for note, (count, names) in sorted(tally.notes.items())
        },
        "skipped": count_reasons(skipped),
        "skipped_files": [asdict(s) for s in skipped[:MAX_NAMED]],
        "skipped_unnamed": len(skipped[MAX_NAMED:]),
        "reasons": group_reasons(skipped),
        "lost": losses.as_report(),
    }


def write_skipped(out: Path, skipped: Sequence[SkippedFile]) -> None:
    """Write all skipped files to SKIPPED_LIST, a JSON object a line, where a manifest cannot name
    them all."""
    if len(skipped) > MAX_NAMED:
        lines = (json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in skipped)
        write_atomic(out / SKIPPED_LIST, "".join(lines).encode("utf-8", "surrogateescape"))
