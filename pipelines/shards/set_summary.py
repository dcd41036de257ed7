"""The report of a set in words: what `prepare` prints at its end, and `inspect` of any set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bytelm.pipelines.shards.format import SPLITS

NAMES_SHOWN = 3
"""Names of files that reports keep and summaries print for one cause."""
KINDS_SHOWN = 8
"""Suffixes of one modality that are named."""
NAMES_CHARACTERS = 80
"""Characters of a file's name that are shown."""

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def split_lines(report: Mapping[str, Any]) -> list[str]:
    """A line for each split of a report, with its documents and bytes, and one for empty ones."""
    splits = report["splits"]
    lines = []
    for split, counts in splits.items():
        sizes = [f"{size_text(n)} {modality}" for modality, n in counts["bytes"].items() if n]
        lines.append(", ".join([f"{split}: {counted(counts['documents'], 'document')}", *sizes]))
    empty = [split for split in SPLITS if split not in splits]
    if empty:
        lines.append(
            f"{' and '.join(empty)}: empty; for documents there, add a folder of that name beside "
            "a folder train, or give more files"
        )
    return lines


def content_lines(report: Mapping[str, Any]) -> list[str]:
    """Lines about what was taken as what, and what was left out and why.

    Reports of older versions have some of the values only, and give fewer lines.
    """
    lines = [_taken_line(modality, taken) for modality, taken in report.get("taken", {}).items()]
    lines += [f"pairs: {n:,} of {names}" for names, n in report.get("pairs", {}).items()]
    lines += report.get("remarks", [])
    lines += [_note_line(note, entry) for note, entry in report.get("notes", {}).items()]
    lines += skipped_lines(report)
    return lines


def skipped_lines(report: Mapping[str, Any]) -> list[str]:
    """Lines about what was skipped and how much was lost."""
    reasons = report.get("reasons")
    if reasons is None:  # of an older version
        counts = report.get("skipped", {})
        text = ", ".join(f"{n} {reason}" for reason, n in counts.items())
        return [f"skipped: {text}"] if text else []
    if not reasons:
        return []
    lines = [f"skipped: {reason_line(reason, entry)}" for reason, entry in reasons.items()]
    losses = report.get("lost", {})
    lost = [
        f"{loss['lost'] / loss['total']:.1%} of the {kind}"
        for kind, loss in losses.items()
        if loss["lost"] and loss["total"]
    ]
    if lost:
        lines.append(f"lost: {', '.join(lost)}")
    return lines


def reason_line(reason: str, entry: Mapping[str, Any]) -> str:
    """A reason with its count and first names: `3 empty (a.txt, b.txt, c.txt)`."""
    return f"{entry['count']:,} {reason} ({first_names(entry['names'], entry['entries'])})"


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 document`, `2 documents`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size_text(size: int) -> str:
    """A number of bytes for people: `312 bytes`, `10.2 MB`."""
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return counted(size, "byte")


def _taken_line(modality: str, taken: Mapping[str, Any]) -> str:
    """A modality with its documents, bytes, and the suffixes of their files, the most first."""
    kinds = sorted(taken["kinds"].items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{kind} {n:,}" for kind, n in kinds[:KINDS_SHOWN]]
    if kinds[KINDS_SHOWN:]:
        shown.append(f"others {sum(n for _, n in kinds[KINDS_SHOWN:]):,}")
    count = sum(n for _, n in kinds)
    amount = f"{counted(count, 'document')}, {size_text(taken['bytes'])}"
    return f"{modality}: {amount} ({', '.join(shown)})"


def _note_line(note: str, entry: Mapping[str, Any]) -> str:
    count = entry["count"]
    return f"{note}: {counted(count, 'file')} ({first_names(entry['names'], count)})"


def first_names(names: Sequence[str], count: int) -> str:
    """The first NAMES_SHOWN of `count` names; an ellipsis where there are more.

    Args:
        names: at least the first ones.
        count: number of all.
    """
    shown = [_short(name) for name in names[:NAMES_SHOWN]]
    return ", ".join([*shown, "..."] if count > len(shown) else shown)


def _short(name: str) -> str:
    """A name without its middle where it is long, and with escapes for what cannot be printed."""
    name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    if len(name) <= NAMES_CHARACTERS:
        return name
    half = NAMES_CHARACTERS // 2
    return f"{name[:half]}...{name[-half:]}"
