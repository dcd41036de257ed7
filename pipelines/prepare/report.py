"""Reports of `prepare`: in the manifest, in the summary, and in errors about bad files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bytelm.pipelines.prepare.documents import HARMLESS_REASONS, SkippedFile, count_reasons
from bytelm.pipelines.shards.format import Shard


def set_report(
    input_hash: str, files: int, shards: Sequence[Shard], skipped: Sequence[SkippedFile]
) -> dict[str, Any]:
    """The report in a set's manifest.

    Args:
        input_hash: identifies the sources and options.
        files: files that were seen.
        shards: shards of the set.
        skipped: what did not become part of a document, sorted.
    Returns:
        `input`, `files`, `documents`, documents and bytes of each split, how many files were
        skipped for each reason, and every skipped file.
    """
    splits: dict[str, Any] = {}
    for shard in shards:
        counts = splits.setdefault(shard.split, {"documents": 0, "bytes": {}})
        counts["documents"] += shard.documents
        for modality, size in shard.bytes.items():
            counts["bytes"][modality] = counts["bytes"].get(modality, 0) + size
    return {
        "input": input_hash,
        "files": files,
        "documents": sum(s.documents for s in shards),
        "splits": splits,
        "skipped": count_reasons(skipped),
        "skipped_files": [asdict(s) for s in skipped],
    }


def summary_lines(report: dict[str, Any]) -> list[str]:
    """A line for each split of a report, with its documents and bytes."""
    lines = []
    for split, counts in report["splits"].items():
        sizes = [f"{n / 1e6:.1f} MB {m}" for m, n in counts["bytes"].items() if n]
        lines.append(", ".join([f"{split}: {counts['documents']} documents", *sizes]))
    return lines


def check_bad_files(files: int, skipped: Sequence[SkippedFile], max_bad_share: float) -> None:
    """Raise ValueError where more than `max_bad_share` of all files are bad."""
    bad = sum(s.reason not in HARMLESS_REASONS for s in skipped)
    if bad > max_bad_share * max(files, 1):
        raise ValueError(
            f"{bad} of {files} files are bad, more than {max_bad_share:.0%}: "
            f"{list_reasons(skipped)}; mend or remove them, or allow more with --max-bad-share"
        )


def list_reasons(skipped: Sequence[SkippedFile]) -> str:
    """The number of skipped files for each reason, and the first name of each."""
    first = {s.reason: s.name for s in sorted(skipped, reverse=True)}
    counts = count_reasons(skipped)
    return ", ".join(f"{n} {r} ({first[r]})" for r, n in counts.items()) or "the sources are empty"
