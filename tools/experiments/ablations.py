"""Bits per byte of `modern` with one thing changed, trained for the same time: JSON lines.

    python tools/bench_ablations.py --work DIR [--only NAME,...] [--minutes M] FOLDER ...

FOLDERs are as for `bench_quality.py`; `ablations.py` lists the changes. Each run has one thread and
lasts by the time of the processor, so that as many may run beside each other as there are cores.
With `--flops F` a run takes as many steps as come to F instead; that is the measure for a GPU,
where such small models wait for the processor.
What is finished lies in DIR, and the same command goes on after a stop.

    ablation/MODALITY/NAME    bits/byte on `val`: the mean over seeds; `spread` is its standard
                              error, `reference` the base's mean
"""

from __future__ import annotations

import json
import time

import torch
from rich.console import Console

from bytelm.tools.experiments.entrants import Entrant, OwnEntrant
from bytelm.tools.experiments.harness import (
    Corpora,
    Ledger,
    Result,
    Run,
    budget,
    experiment_parser,
    figures,
    prepare_sets,
)
from bytelm.tools.experiments.recipes import ABLATIONS, Recipe


def main() -> None:
    """Run what is missing, and print."""
    parser = experiment_parser("One change at a time.", minutes=5.0)
    parser.add_argument("--only", default=",".join(ABLATIONS), help="changes, with commas")
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
            ledger = Ledger(options.work / "runs", corpora[name], build, console, time.process_time)
            results[name].append(
                ledger.result(Run(name, ABLATIONS[name].recipe(), budget(options), seed))
            )
    for figure in figures("ablation", results, corpora["base"], ["base"]):
        print(json.dumps(figure), flush=True)


def build(name: str, recipe: Recipe, context: int) -> Entrant:
    """The model and the optimizer of a change."""
    return OwnEntrant(recipe.model, recipe.optimizer)


if __name__ == "__main__":
    main()
