"""Tables of an evaluation and of a run, as texts that HTML and Markdown show alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bytelm.pipelines.shards.set_summary import size_text

NO_BREAK = "\u00a0"
NONE = "–"
"""Shown where there is no figure."""
TOTAL = "total"
MODEL_ROW = "this model"
SHOWN_DOCUMENTS = 5
"""Documents shown from each end of the order by bits per byte."""


@dataclass(frozen=True)
class ReportTable:
    """A table of texts; the first column names the rows, and the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    highlighted: frozenset[int] = frozenset()
    """Rows that stand out, as the model's between the codecs."""
    note: str = ""


def result_table(evaluation: Mapping[str, Any]) -> ReportTable:
    """Bits per byte of each modality with its interval, what the frame costs, and the amount."""
    intervals = evaluation.get("intervals", {})
    documents = _document_counts(evaluation)
    rows = []
    for name, figures in evaluation["model"].items():
        interval = intervals.get(name, {}).get("bits_per_byte")
        rows.append(
            [
                name,
                bits(figures.get("bits_per_byte")),
                f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else NONE,
                bits(figures.get("coded_bits_per_byte")),
                count(documents.get(name)),
                size(figures.get("payload_bytes")),
            ]
        )
    return ReportTable(
        "Bits per byte",
        ["", "bits/byte", "95 % interval", "coded", "documents", "payload"],
        rows,
        note="The interval is a bootstrap over documents. Coded bits add what a document's header "
        "and ends cost.",
    )


def figure_table(evaluation: Mapping[str, Any]) -> ReportTable:
    """The further figures of each modality's head, as bits per character or per pixel."""
    shown = {"bits_per_byte", "coded_bits_per_byte", "payload_bytes", "documents"}
    rows = [
        [f"{name}: {figure.replace('_', ' ')}", f"{value:,.4g}"]
        for name, figures in evaluation["model"].items()
        for figure, value in figures.items()
        if figure not in shown and isinstance(value, int | float)
    ]
    return ReportTable("In other units", ["", "value"], rows)


def codec_tables(evaluation: Mapping[str, Any]) -> list[ReportTable]:
    """For each modality the model between the codecs, the best first."""
    chunks, weighed = evaluation.get("codec_chunks", {}), evaluation.get("with_weights", {})
    tables = []
    for name, codecs in evaluation.get("codecs", {}).items():
        model = evaluation["model"].get(name, {}).get("bits_per_byte")
        if model is None or not codecs:
            continue
        entries: list[tuple[float, list[str], bool]] = [
            (value, [codec, bits(value), bits(chunks.get(name, {}).get(codec))], False)
            for codec, value in codecs.items()
            if value is not None
        ]
        entries.append((model, [MODEL_ROW, bits(model), NONE], True))
        note = ""
        heavy = weighed.get(name, {}).get("bits_per_byte")
        if heavy is not None:
            row = [f"{MODEL_ROW} with its weights", bits(heavy), NONE]
            entries.append((heavy, row, True))
            weights = size(weighed[name].get("weight_bytes"))
            scored = size(evaluation["model"][name].get("payload_bytes"))
            note = f"The weights, {weights} in fp16, count once on the {scored} that were scored."
        entries.sort(key=lambda entry: entry[0])
        highlighted = frozenset(i for i, entry in enumerate(entries) if entry[2])
        columns = ["", "whole files", "2 kB chunks"]
        rows = [entry[1] for entry in entries]
        title = f"{name} beside codecs"
        tables.append(ReportTable(title, columns, rows, highlighted, note))
    return tables


def pair_table(evaluation: Mapping[str, Any]) -> ReportTable | None:
    """Table of the bits that a condition tells of its segment; None where there are no pairs."""
    pairs = evaluation.get("pairs") or {}
    rows = [
        [
            name,
            bits(entry.get("with_condition")),
            bits(entry.get("without_condition")),
            count(entry.get("gain_bits")),
            count(entry.get("documents")),
        ]
        for name, entry in pairs.items()
    ]
    if not rows:
        return None
    return ReportTable(
        "Pairs: with the condition and without it",
        ["", "with", "without", "gain in bits", "documents"],
        rows,
    )


def document_table(evaluation: Mapping[str, Any]) -> ReportTable | None:
    """The documents with the fewest and with the most bits per byte; None without documents."""
    scored = [d for d in evaluation.get("documents", []) if d["bytes"] and d["bits"] is not None]
    scored.sort(key=lambda d: d["bits"] / d["bytes"])
    if not scored:
        return None
    shown = scored
    if len(scored) > 2 * SHOWN_DOCUMENTS:
        shown = scored[:SHOWN_DOCUMENTS] + scored[-SHOWN_DOCUMENTS:]
    rows = [
        [str(d["key"]), str(d["modality"]), size(d["bytes"]), bits(d["bits"] / d["bytes"])]
        for d in shown
    ]
    return ReportTable(
        f"Least and most surprising of {len(scored):,} documents",
        ["document", "modality", "payload", "bits/byte"],
        rows,
    )


def _document_counts(evaluation: Mapping[str, Any]) -> dict[str, int]:
    """Documents of each modality, and of all as `total`."""
    entries = [(d["modality"], d["key"]) for d in evaluation.get("documents", [])]
    counts = dict(Counter(modality for modality, _ in entries))
    return {**counts, TOTAL: len({key for _, key in entries})}


def bits(value: float | None) -> str:
    """Bits per byte with three decimals."""
    return NONE if value is None else f"{value:,.3f}"


def count(value: float | None) -> str:
    """A whole number."""
    return NONE if value is None else f"{int(value):,}"


def size(value: float | None) -> str:
    """A number of bytes for people, whose unit stays on its line."""
    return NONE if value is None else size_text(int(value)).replace(" ", NO_BREAK)
