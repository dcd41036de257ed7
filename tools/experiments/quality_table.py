"""Bits per byte after training for the same time, beside other byte models: JSON lines, a table.

    python tools/bench_quality.py --work DIR [--only NAME,...] [--minutes M] [FOLDER ...]

Each FOLDER holds files of one modality below `train` and `val` (the demo's by default); modalities
are mixed in equal bytes. `entrants.py` says who runs and what is tried for each, `quality.py` how.
For each entrant the best size, learning rate and switch are searched in short runs, and then
trained once for each seed; `--flops F` trains for F FLOPs instead of a time. One row of 8,192 ids a
step, bf16 autocast (fp32 where the device has no bf16); on the GPU where there is one, else with
two threads or as many as `--threads` says, and nothing else should run on their cores. What is
finished lies in DIR, and the same command goes on after a stop.

One line a figure, and where a modality has several folders one for each of these too:

    quality/MODALITY/ENTRANT    bits/byte: the mean over seeds of Σ nats / (ln 2 · Σ payload bytes)
                                on all of `val`; `spread` is its standard error, `reference` the
                                best peer's mean, `ratio` = value / reference
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.tools.benchmarks.peers import PEERS
from bytelm.tools.experiments.entrants import ENTRIES, PATCH, Settings, build
from bytelm.tools.experiments.harness import (
    Budget,
    Corpora,
    Ledger,
    Run,
    add_budget,
    budget,
    figures,
    prepare_sets,
    search,
    search_runs,
)

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"
CONTEXT = 8_192
SCORING_SPEED = 50_000
"""Bytes per second, to foretell the time of scoring alone."""
LOG_WIDTH = 132
"""Columns of the table where it goes to a file."""


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description="Bits per byte at equal training time.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--work", type=Path, required=True, help="keeps sets and finished runs")
    parser.add_argument("--only", default=",".join(ENTRIES), help="entrants, with commas")
    add_budget(parser, minutes=10.0)
    parser.add_argument(
        "--search-share", type=float, default=0.3, help="of a training, that a search's run is"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of every run")
    options = parser.parse_args()
    names = options.only.split(",")
    for name in names:
        if name not in ENTRIES:
            parser.error(f"no entrant {name!r}: choose from {', '.join(ENTRIES)}")
    chosen = budget(options)
    if min(chosen.amount, options.search_share) <= 0 or min(options.seeds, options.threads) < 1:
        parser.error("a training and its share have to be above 0, seeds and threads at least 1")
    folders = options.folders or [DEMO / modality for modality in ("text", "image", "audio")]

    torch.set_num_threads(options.threads)
    width = None if sys.stderr.isatty() else LOG_WIDTH
    console = Console(stderr=True, highlight=False, width=width)
    try:
        sets = prepare_sets(folders, options.work, console)
        corpora = Corpora(sets, PlanConfig(CONTEXT, PATCH, vars(ViewsConfig())))
    except ValueError as error:
        parser.error(str(error))
    console.print(forecast(names, corpora, chosen, options.search_share, options.seeds))
    ledger = Ledger(options.work / "runs", corpora, build, console)
    runs: dict[str, list[Run[Settings]]] = {}
    for name in names:
        best = search(ledger, name, ENTRIES[name], chosen.times(options.search_share))
        runs[name] = [Run(name, best, chosen, seed) for seed in range(options.seeds)]
    # Seed by seed, so that what changes on the machine over the hours changes for all.
    for seed in range(options.seeds):
        for name in names:
            ledger.result(runs[name][seed])
    results = {name: [ledger.result(run) for run in runs[name]] for name in names}
    found = list(figures("quality", results, corpora, PEERS))
    for figure in found:
        print(json.dumps(figure), flush=True)
    console.print(table(found, {name: f"{name}{runs[name][0].settings}" for name in names}))


def forecast(
    names: Sequence[str], corpora: Corpora, each: Budget, search_share: float, seeds: int
) -> str:
    """The runs and their time, before any of them begins."""
    searches = sum(search_runs(ENTRIES[name]) for name in names)
    trainings = len(names) * seeds
    training = each.times(searches * search_share + trainings)
    scoring = trainings * corpora.val_bytes() / SCORING_SPEED / 60
    return (
        f"{len(names)} entrants: {searches} runs of {each.times(search_share)} to search, "
        f"{trainings} of {each} to compare, {training} of training; scoring "
        f"{corpora.val_bytes() / 1e6:.1f} MB {trainings} times takes about {scoring / 60:.1f} h at "
        f"{SCORING_SPEED // 1000} kB/s. Runs that are finished are not run again."
    )


def table(found: Sequence[Mapping[str, Any]], settings: Mapping[str, str]) -> Table:
    """The figures with an entrant in each row, for people."""
    cells = {figure["name"]: figure for figure in found}
    parts = list(dict.fromkeys(figure["name"].split("/")[1] for figure in found))
    shown = Table(title="bits per byte on val ± standard error")
    shown.add_column("settings", no_wrap=True)
    for part in parts:
        shown.add_column(part)
    for name, chosen in settings.items():
        row = []
        for part in parts:
            figure = cells[f"quality/{part}/{name}"]
            spread = "" if figure["spread"] is None else f" ± {figure['spread']:.3f}"
            row.append(f"{figure['value']:.3f}{spread}")
        shown.add_row(chosen, *row)
    return shown


if __name__ == "__main__":
    main()
