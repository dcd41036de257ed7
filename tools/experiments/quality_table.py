"""Bits per byte after training for the same time, beside other byte models: JSON lines, a table.

    python -m bytelm.tools.experiments.quality_table --work DIR [--only NAME,...] [--minutes M]
        [--flops F] [--search-fraction S] [--seeds N] [--threads N] [FOLDER ...]

Each FOLDER holds files of one modality below `train` and `val` (the demo's by default); modalities
are mixed in equal bytes. `models.py` lists the models and the values to try for each, `harness.py`
trains and scores. Short runs, each a fraction S of a training, search the best size, learning rate
and rotary switch of each model, which is then trained once for each seed; `--flops F` trains for F
FLOPs in place of a time. One row of 8,192 ids a step, bf16 autocast (fp32 where the device has no
bf16); on the GPU if there is one, else with two threads or `--threads`, and nothing else should run
on their cores. The defaults take about four and a half hours; the command prints an estimate first.
Finished runs are kept in DIR, and the same command continues after a stop. The peers need
`pip install 'bytelm[bench]'`.

Prints a JSON line for each modality and model, and for each folder of a modality that has several:

    quality/MODALITY/MODEL    bits/byte: the mean over seeds of Σ nats / (ln 2 · Σ payload bytes)
                              on all of `val`; `spread` is its standard error, `reference` the
                              best peer's mean, `ratio` = value / reference
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.tools.benchmarks.measure import Figure, print_figures
from bytelm.tools.benchmarks.peers import PEERS
from bytelm.tools.experiments.command_line import add_budget, add_folders, add_work, budget_of
from bytelm.tools.experiments.corpora import Corpora, prepare_sets
from bytelm.tools.experiments.harness import Budget, Result, Run, RunCache, summarize
from bytelm.tools.experiments.models import (
    PATCH,
    SEARCH_SPACES,
    SearchSpace,
    Settings,
    build_model,
)

CONTEXT = 8_192
SEARCH_ROWS = 8
"""Rows of each set's `val` that a run of the search scores."""
SCORING_SPEED = 50_000
"""Bytes per second, by which the time of scoring is estimated."""
LOG_WIDTH = 132
"""Columns of the table if it goes to a file."""


def main() -> None:
    """Run what is missing, and print."""
    parser = _parser()
    options = parser.parse_args()
    names = options.only.split(",")
    for name in names:
        if name not in SEARCH_SPACES:
            parser.error(f"no model {name!r}: choose from {', '.join(SEARCH_SPACES)}")
    budget = budget_of(options)
    if min(budget.amount, options.search_fraction) <= 0 or min(options.seeds, options.threads) < 1:
        parser.error(
            "the length of a training and the search's fraction of it must be above 0, "
            "seeds and threads at least 1"
        )
    torch.set_num_threads(options.threads)
    width = None if sys.stderr.isatty() else LOG_WIDTH
    console = Console(stderr=True, highlight=False, width=width)
    try:
        sets = prepare_sets(options.folders, options.work, console)
        corpora = Corpora(sets, PlanConfig(CONTEXT, PATCH, vars(ViewsConfig())))
    except ValueError as error:
        parser.error(str(error))
    search_budget = budget.times(options.search_fraction)
    console.print(forecast(names, corpora, budget, search_budget, options.seeds))

    cache = RunCache(options.work / "runs", corpora, build_model, console)
    settings = {name: search(cache, name, SEARCH_SPACES[name], search_budget) for name in names}
    results = compare(cache, settings, budget, options.seeds)
    figures = list(summarize("quality", results, corpora, PEERS))
    print_figures(figures)
    console.print(table(figures, settings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Bits per byte at equal training time.")
    add_folders(parser)
    add_work(parser)
    parser.add_argument(
        "--only", default=",".join(SEARCH_SPACES), metavar="NAME,...", help="models to compare"
    )
    add_budget(parser, minutes=10.0)
    parser.add_argument(
        "--search-fraction",
        type=float,
        default=0.3,
        help="length of a run of the search, as a fraction of a training",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model")
    parser.add_argument("--threads", type=int, default=2, help="of every run")
    return parser


def forecast(
    names: Sequence[str], corpora: Corpora, budget: Budget, search_budget: Budget, seeds: int
) -> str:
    """The number of runs and about their time, for people."""
    searches = sum(number_of_search_runs(SEARCH_SPACES[name]) for name in names)
    trainings = len(names) * seeds
    total = budget.times(trainings + searches * search_budget.amount / budget.amount)
    scoring_hours = trainings * corpora.val_bytes() / SCORING_SPEED / 3600
    return (
        f"{len(names)} models: {searches} runs of {search_budget} to search, "
        f"{trainings} of {budget} to compare, {total} of training; scoring "
        f"{corpora.val_bytes() / 1e6:.1f} MB {trainings} times takes about {scoring_hours:.1f} h "
        f"at {SCORING_SPEED // 1000} kB/s. Runs that are finished are not run again."
    )


def search(cache: RunCache[Settings], name: str, space: SearchSpace, budget: Budget) -> Settings:
    """The best settings of a model, one axis after the other: size, learning rate, rotary.

    Best is the lowest mean over modalities of bits per byte.
    """

    def mean_bits(settings: Settings) -> float:
        result = cache.result(Run(name, settings, budget, val_rows=SEARCH_ROWS))
        mean = fmean(map(result.bits_per_byte, cache.corpora.by_modality.values()))
        return mean if math.isfinite(mean) else math.inf

    axes: list[list[dict[str, Any]]] = [
        [dict(zip(("width", "layers", "patch"), size, strict=True)) for size in space.sizes],
        [{"lr": lr} for lr in space.lrs],
        [{"rotary": rotary} for rotary in space.rotary],
    ]
    best = Settings(*space.sizes[0], space.lrs[0], space.rotary[0])
    for axis in axes:
        best = min((replace(best, **change) for change in axis), key=mean_bits)
    return best


def number_of_search_runs(space: SearchSpace) -> int:
    """Number of runs of a search."""
    return len(space.sizes) + len(space.lrs) - 1 + len(space.rotary) - 1


def compare(
    cache: RunCache[Settings], settings: Mapping[str, Settings], budget: Budget, seeds: int
) -> dict[str, list[Result]]:
    """Results of each model, one for each seed.

    Trains all models with one seed before the next, so that changes of the machine over the hours
    affect all of them.
    """
    results: dict[str, list[Result]] = {name: [] for name in settings}
    for seed in range(seeds):
        for name, best in settings.items():
            results[name].append(cache.result(Run(name, best, budget, seed)))
    return results


def table(figures: Sequence[Figure], settings: Mapping[str, Settings]) -> Table:
    """The figures with a model in each row, for people."""
    by_name = {figure.name: figure for figure in figures}
    parts = list(dict.fromkeys(figure.name.split("/")[1] for figure in figures))
    rows = Table(title="bits per byte on val ± standard error")
    rows.add_column("settings", no_wrap=True)
    for part in parts:
        rows.add_column(part)
    for name, best in settings.items():
        cells = []
        for part in parts:
            figure = by_name[f"quality/{part}/{name}"]
            spread = figure.details["spread"]
            cells.append(f"{figure.value:.3f}" + ("" if spread is None else f" ± {spread:.3f}"))
        rows.add_row(f"{name}{best}", *cells)
    return rows


if __name__ == "__main__":
    main()
