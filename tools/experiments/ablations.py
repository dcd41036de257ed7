"""Bits per byte of `modern` with one thing changed, trained for the same time.

    python -m bytelm.tools.experiments.ablations --work DIR [--only NAME,...] [--minutes M]
        [--flops F] [--seeds N,...] FOLDER ...

FOLDERs are as for `quality_table.py`; `recipes.py` lists the changes. Each run has one thread and
lasts by the processor's time, 5 minutes by default, so that as many commands may run beside each
other as there are cores: all changes with two seeds take about eight hours on one. With `--flops F`
a run takes as many steps as come to F; use that on a GPU, where such small models wait for the
processor. Finished runs are kept in DIR, and the same command continues after a stop.

Prints a JSON line a figure:

    ablation/MODALITY/NAME    bits/byte on `val`, the mean over seeds; `spread` is its standard
                              error, `reference` the base's mean, `ratio` = value / reference
"""

from __future__ import annotations

import torch
from rich.console import Console

from bytelm.tools.benchmarks.measure import print_figures
from bytelm.tools.experiments.command_line import budget_of, experiment_parser
from bytelm.tools.experiments.corpora import Corpora, prepare_sets
from bytelm.tools.experiments.harness import Result, Run, summarize
from bytelm.tools.experiments.recipes import ABLATIONS, recipe_runs


def main() -> None:
    """Run what is missing, and print."""
    parser = experiment_parser("Bits per byte with one thing changed at a time.", minutes=5.0)
    parser.add_argument(
        "--only",
        default=",".join(ABLATIONS),
        metavar="NAME,...",
        help="changes to run beside the base",
    )
    options = parser.parse_args()
    names = list(dict.fromkeys(["base", *options.only.split(",")]))
    for name in names:
        if name not in ABLATIONS:
            parser.error(f"no change {name!r}: choose from {', '.join(ABLATIONS)}")

    torch.set_num_threads(1)
    console = Console(stderr=True, highlight=False)
    try:
        sets = prepare_sets(options.folders, options.work, console)
        corpora = {name: Corpora(sets, ABLATIONS[name].plan_config()) for name in names}
    except ValueError as error:
        parser.error(str(error))
    results: dict[str, list[Result]] = {name: [] for name in names}
    for seed in options.seeds:
        for name in names:
            run = Run(name, ABLATIONS[name].recipe(), budget_of(options), seed)
            results[name].append(recipe_runs(options.work, corpora[name], console).result(run))
    print_figures(summarize("ablation", results, corpora["base"], ["base"]))


if __name__ == "__main__":
    main()
