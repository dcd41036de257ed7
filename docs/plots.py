"""Draw the plots of the site from the tables on its pages: `python docs/plots.py`.

    images/quality.svg, images/hour.svg    docs/benchmarks.md
    images/other-kinds.svg                 docs/results.md

Colours are from the palette of Okabe and Ito, which colour-blind readers can tell apart; ours
differs from the others in lightness too.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
OURS, OTHERS, INK, GRID = "#0072b2", "#c3ccd6", "#1c2430", "#dfe3e8"
WIDTH, LEFT, RIGHT, BAR, STEP, HEAD = 600, 224, 60, 22, 30, 40


@dataclass(frozen=True)
class Bars:
    """One panel: a bar for each name."""

    title: str
    values: dict[str, float]
    ours: tuple[str, ...] = ("modern", "bytelm")
    """Names whose bars stand out."""


def main(out: Path) -> None:
    """Write all plots to a folder."""
    page = (DOCS / "benchmarks.md").read_text("utf-8")
    quality = table_after(page, "## Quality at equal time, 2026-11-28")
    entrants = [short_name(row[0]) for row in quality[1:]]
    draw(
        [
            Bars(name, dict(zip(entrants, column(quality, name), strict=True)))
            for name in ("text", "image", "audio")
        ],
        out / "quality.svg",
        "Bits per byte on unseen files after three minutes of training on two cores",
    )
    hour = table_after(page, "### One hour beside codecs")
    draw(
        [Bars(row[0], positive(hour[0][2:], row[2:])) for row in hour[1:]],
        out / "hour.svg",
        "Bits per byte on unseen files after one hour of training on two cores, beside codecs",
    )
    kinds = table_after((DOCS / "results.md").read_text("utf-8"), "## Other kinds")
    draw(
        [over_the_best(kinds, modality) for modality in ("text", "image", "audio")],
        out / "other-kinds.svg",
        "Size by the demo's model over that by the best codec, for kinds it was not trained on",
        "size over the best codec's (lower is better)",
    )


def table_after(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without the line of hyphens."""
    (section,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^#|\Z)", page, re.DOTALL | re.M)
    lines = re.search(r"(?:^\|.*\n)+", section, re.M)
    assert lines, f"no table below {heading}"
    rows = [[cell.strip(" *`") for cell in line.split("|")[1:-1]] for line in lines[0].splitlines()]
    return [rows[0], *rows[2:]]


def short_name(name: str) -> str:
    """An entrant without its shape and learning rate."""
    return re.split(r",?\s+\d+x\d+", name)[0].replace("`", "")


def column(table: list[list[str]], name: str) -> list[float]:
    """The numbers of a column, without their errors."""
    column = table[0].index(name)
    return [float(row[column].split()[0].strip("*")) for row in table[1:]]


def positive(names: list[str], cells: list[str]) -> dict[str, float]:
    """The cells that hold a number, by the name of their column, smallest first."""
    values = {n: float(c) for n, c in zip(names, cells, strict=True) if c != "-"}
    return dict(sorted(values.items(), key=lambda item: item[1]))


def over_the_best(kinds: list[list[str]], modality: str) -> Bars:
    """The last way's bits over the best codec's, of each kind of a modality."""
    column = kinds[0].index("over the best")
    last = {row[0]: row[column].split(", ")[-1] for row in kinds[1:] if row[1] == modality}
    values = {name: 1 + float(change.rstrip("%")) / 100 for name, change in last.items()}
    return Bars(modality, values, ours=tuple(values))


def draw(
    panels: list[Bars],
    path: Path,
    description: str,
    axis_label: str = "bits per byte (lower is better)",
) -> None:
    """Write panels of horizontal bars over one axis."""
    top = max(value for panel in panels for value in panel.values.values())
    ticks = range(int(top) + 2)
    scale = (WIDTH - LEFT - RIGHT) / ticks[-1]
    height = 16 + sum(HEAD + STEP * len(panel.values) for panel in panels) + 56
    axis = height - 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f"font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\">",
        f"<title>{escape(description)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#fff"/>',
    ]
    for tick in ticks:
        x = LEFT + tick * scale
        parts.append(f'<path d="M{x:.1f} 16V{axis}" stroke="{GRID}"/>')
        parts.append(text(x, axis + 20, str(tick), anchor="middle"))
    parts.append(text(LEFT, axis + 45, axis_label, size=17))
    y = 16
    for panel in panels:
        parts.append(text(14, y + 26, panel.title, weight=600, size=19))
        y += HEAD
        for name, value in panel.values.items():
            ours = name in panel.ours
            end = LEFT + value * scale
            parts.append(text(LEFT - 8, y + 17, name, anchor="end", weight=600 if ours else 400))
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{value * scale:.1f}" height="{BAR}" '
                f'fill="{OURS if ours else OTHERS}"/>'
            )
            parts.append(text(end + 6, y + 17, f"{value:.3f}", weight=600 if ours else 400))
            y += STEP
    path.write_text("\n".join([*parts, "</svg>", ""]), "utf-8")


def text(
    x: float, y: float, content: str, anchor: str = "start", weight: int = 400, size: int = 16
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{INK}">{escape(content)}</text>'
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "images")
