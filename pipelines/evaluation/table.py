"""An evaluation as tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from bytelm.pipelines.evaluation import CHUNK
from bytelm.pipelines.runtime.tables import print_table

if TYPE_CHECKING:
    from bytelm.pipelines.evaluation.records import Evaluation, Figures

MAX_BINS = 6
"""Bins of a map that is shown in a line; longer ones are in `--json` and in the report."""
NONE = "-"


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print the figures, a summary of where the bits go, and what is missing."""
    print_table(console, evaluation_table(evaluation))
    if evaluation.pairs:
        console.print()
        print_table(console, pair_table(evaluation))
    lines = list(_map_lines(evaluation))
    if lines:
        console.print("\nwhere the bits go, in bits/byte (all maps: --json, bytelm report)")
        for line in lines:
            console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)
    for note in _notes(evaluation):
        console.print(escape(note), soft_wrap=True, highlight=False)


def evaluation_table(evaluation: Evaluation) -> Table:
    """A column for each modality, with the figures of the model and then of the codecs."""
    about, model = evaluation.about, evaluation.model
    table = Table(title=f"bits per byte on {about['split']}", show_edge=False, pad_edge=False)
    table.add_column("")
    for name in model:
        table.add_column(name, justify="right")

    def add(label: str, cells: list[str], style: str | None = None) -> None:
        table.add_row(label, *cells, style=style)

    def bits(figures: dict[str, dict[str, float]], key: str) -> list[str]:
        return [_number(figures.get(name, {}).get(key)) for name in model]

    add(f"model, {about['scoring']}", bits(model, "bits_per_byte"), "bold")
    ends = [evaluation.intervals.get(name, {}).get("bits_per_byte") for name in model]
    add("  95 % interval", [f"{e[0]:.3f}–{e[1]:.3f}" if e else NONE for e in ends])
    add("  with headers", bits(model, "coded_bits_per_byte"))
    weights = 2 * about["parameters"]
    add(f"  with {decimal(weights)} weights", bits(evaluation.with_weights, "bits_per_byte"))
    for codec in _codecs(evaluation.codecs):
        add(codec, bits(evaluation.codecs, codec))
    chunked = _codecs(evaluation.codec_chunks)
    if chunked:
        table.add_section()
        add(f"chunks of {CHUNK:,} bytes", [""] * len(model))
    for codec in chunked:
        add(f"  {codec}", bits(evaluation.codec_chunks, codec))
    table.add_section()
    table.add_row("bytes", *(decimal(int(model[name]["payload_bytes"])) for name in model))
    table.add_row("documents", *(f"{count:,}" for count in _document_counts(evaluation)))
    return table


def pair_table(evaluation: Evaluation) -> Table:
    """Rows of the bits that the condition of each modality's segments saves."""
    table = Table(title="pairs, in bits per byte", show_edge=False, pad_edge=False)
    table.add_column("")
    for column in ("alone", "with its condition", "saved in all", "documents"):
        table.add_column(column, justify="right")
    for name, figures in evaluation.pairs.items():
        table.add_row(
            name,
            _number(figures["without_condition"]),
            _number(figures["with_condition"]),
            NONE if math.isnan(figures["gain_bits"]) else f"{figures['gain_bits']:,.0f} bits",
            f"{int(figures['documents']):,}",
        )
    return table


def codecs_by_version(versions: Mapping[str, str]) -> str:
    """The tools and libraries that computed codecs: `cjxl 0.7.0 (JPEG XL e7, JPEG XL e9)`."""
    codecs: dict[str, list[str]] = {}
    for codec, version in versions.items():
        codecs.setdefault(version, []).append(codec)
    return ", ".join(
        version if version.startswith(f"{names[0]} ") else f"{version} ({', '.join(names)})"
        for version, names in codecs.items()
    )


def _codecs(figures: Figures) -> list[str]:
    """Every codec that has a figure, in the order of the first modality that has it."""
    return list(dict.fromkeys(name for bits in figures.values() for name in bits))


def _document_counts(evaluation: Evaluation) -> list[int]:
    counts = dict.fromkeys(evaluation.model, 0)
    for document in evaluation.documents:
        if document["modality"] in counts:  # one without payload bytes has no column
            counts[document["modality"]] += 1
    return [*list(counts.values())[:-1], evaluation.about["documents"]]


def _map_lines(evaluation: Evaluation) -> Iterator[str]:
    """A line for each map of a few bins: the bits per byte of each bin, and its share of bits."""
    for modality, maps in evaluation.maps.items():
        for bit_map in maps:
            bins = list(zip(*(bit_map[key] for key in ("labels", "bits", "bytes")), strict=True))
            if not 2 <= len(bins) <= MAX_BINS:
                continue
            total = sum(bits for _, bits, _ in bins) or 1.0
            shown = ", ".join(
                f"{label} {bits / size:.3f} ({bits / total:.0%} of the bits)"
                for label, bits, size in bins
                if size
            )
            yield f"{modality} {bit_map['title']}: {shown}"


def _notes(evaluation: Evaluation) -> Iterator[str]:
    """Notes below the table that its reader needs."""
    about = evaluation.about
    if about["documents"] < about["documents_in_split"]:
        yield (
            f"{about['documents']:,} of {about['documents_in_split']:,} documents were scored "
            f"(--limit {about['limit']})"
        )
    yield from _diverged(evaluation)
    without = [
        name
        for name, figures in evaluation.model.items()
        if name not in evaluation.intervals and not math.isnan(figures["bits_per_byte"])
    ]
    if without:
        yield f"no interval for {', '.join(without)}: it needs two documents that have bytes"
    if evaluation.codec_versions:
        yield f"codecs by {codecs_by_version(evaluation.codec_versions)}"
    for codec, remedy in evaluation.codecs_missing.items():
        yield f"no {codec}: {remedy}"


def _diverged(evaluation: Evaluation) -> Iterator[str]:
    """A line for each modality whose figure is no number, with the number of such documents."""
    for name, figures in evaluation.model.items():
        documents = [d for d in evaluation.documents if d["modality"] == name]
        if documents and math.isnan(figures["bits_per_byte"]):
            count = sum(math.isnan(document["bits"]) for document in documents)
            yield (
                f"no figure for {name}: the model diverged on {count:,} of its {len(documents):,} "
                "documents"
            )


def _number(value: float | None) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:,.3f}"
