"""Tables of results in Markdown, from figures as their JSON lines have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NONE = "-"
ANCHORS = {"text": "xz", "image": "WebP", "audio": "FLAC"}
"""The codec of each modality that everybody has."""
WAYS = ("network", "mixed", "adapted")
"""Ways to use a model, as `results.py` names them."""
FigureDict = dict[str, Any]


def results_page(figures: Sequence[FigureDict], absent: Mapping[str, str]) -> str:
    """All tables that have figures, and a line for each thing that is missing.

    Args:
        absent: why a cell has no figures, by its name.
    """
    sections = [
        _section("Equal time", _equal_time(_of_part(figures, "quality"))),
        _section("All of `val`", _val(_of_part(figures, "val"))),
        _section("Other kinds", _other_kinds(_of_part(figures, "kinds"))),
        _section("Samples", _samples(_of_part(figures, "samples"))),
        _section("Scaling", _scaling(_of_part(figures, "scaling"))),
        "".join(f"- no {name}: {reason}\n" for name, reason in absent.items()),
    ]
    return "\n".join(section for section in sections if section)


def _of_part(figures: Sequence[FigureDict], part: str) -> dict[tuple[str, ...], FigureDict]:
    """Figures of a part, by the rest of their names."""
    split = [(figure["name"].split("/"), figure) for figure in figures]
    return {tuple(names[1:]): figure for names, figure in split if names[0] == part}


def _section(title: str, rows: list[list[str]]) -> str:
    """A heading and a table; empty if the table has a head alone."""
    if len(rows) < 2:
        return ""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _equal_time(figures: Mapping[tuple[str, ...], FigureDict]) -> list[list[str]]:
    """A row for each model, a column for each modality or set."""
    parts = list(dict.fromkeys(part for part, _ in figures))
    models = dict.fromkeys(model for _, model in figures)
    rows = [["", *parts]]
    for model in models:
        cells = []
        for part in parts:
            figure = figures.get((part, model))
            spread = figure["spread"] if figure else None
            cells.append(_number(figure) + ("" if spread is None else f" ± {spread:.3f}"))
        rows.append([model, *cells])
    return rows


def _val(figures: Mapping[tuple[str, ...], FigureDict]) -> list[list[str]]:
    """A row for each way to code, a column for each set."""
    sets = list(dict.fromkeys((name, modality) for name, modality, _ in figures))
    columns = dict.fromkeys(column for *_, column in figures)
    rows = [
        [column, *(_number(figures.get((*of_set, column))) for of_set in sets)]
        for column in sorted(columns, key=lambda column: not column.startswith(WAYS))
    ]
    return [["", *(name for name, _ in sets)], *rows]


def _other_kinds(figures: Mapping[tuple[str, ...], FigureDict]) -> list[list[str]]:
    """A row for each kind: the ways of the model, the anchor and the best codec."""
    ways = [way for way in WAYS if any(column == way for *_, column in figures)]
    rows = [["kind", "", "bytes", *ways, "xz, WebP or FLAC", "best codec", "over the best"]]
    for of, modality in dict.fromkeys((kind, modality) for kind, modality, _ in figures):
        scores = {way: figures.get((of, modality, way)) for way in ways}
        known = [score for score in scores.values() if score]
        if not known:
            continue
        anchor = ANCHORS[modality]
        over = [f"{score['ratio'] - 1:+.1%}" if score else NONE for score in scores.values()]
        rows.append(
            [
                *(of, modality, f"{known[0]['bytes']:,}"),
                *map(_number, scores.values()),
                f"{anchor} {_number(figures.get((of, modality, anchor)))}",
                f"{known[0]['best_codec']} {known[0]['reference']:.3f}",
                ", ".join(over),
            ]
        )
    return rows


def _samples(figures: Mapping[tuple[str, ...], FigureDict]) -> list[list[str]]:
    """A row for each modality and number of steps."""
    rows = [["modality", "steps", "drawn", "real", "taken for real"]]
    for modality, step in dict.fromkeys((modality, step) for modality, step, _ in figures):
        bits = figures[modality, step, "drawn"]
        taken = figures.get((modality, step, "taken for real"))
        share = f"{taken['value']:.0%}" if taken else NONE
        rows.append([modality, step, _number(bits), f"{bits['reference']:.3f}", share])
    return rows


def _scaling(figures: Mapping[tuple[str, ...], FigureDict]) -> list[list[str]]:
    """A row for each modality and size, and two of the fit."""
    rows = [["modality", "size", "FLOPs", "bits/byte", "fit, or the last size"]]
    for (modality, size), figure in figures.items():
        reference = figure["reference"]
        fit = NONE if reference is None else f"{reference:.3f}"
        rows.append([modality, size, f"{figure['flops']:.2g}", _number(figure), fit])
    return rows


def _number(figure: Mapping[str, Any] | None) -> str:
    return f"{figure['value']:.3f}" if figure else NONE
