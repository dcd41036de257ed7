"""Bits per byte of one model for all modalities beside a model for each.

    python -m bytelm.tools.experiments.mixing --work DIR [--minutes M | --flops F] [--seeds N,...]
        FOLDER ...

FOLDERs are as for `quality_table.py`. One `modern` model is trained on all of them for M minutes
(15 by default) or F FLOPs, and one on each modality alone for an equal part of that. Each run has
one thread and lasts by the processor's time, as in `ablations.py`: an hour in all for two seeds.
Finished runs are kept in DIR, and the same command continues after a stop.

Prints a JSON line a figure:

    mixed/MODALITY/alone       bits/byte on `val` of a model of one modality, the mean over seeds
    mixed/MODALITY/together    the same of the model of all modalities; `reference` is the mean of
                               `alone`

`spread` is the standard error, `ratio` = value / reference.
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
    parser = experiment_parser("One model for all modalities, or one for each.", minutes=15.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True, highlight=False)
    base = ABLATIONS["base"]
    try:
        sets = prepare_sets(options.folders, options.work, console)
        together = Corpora(sets, base.plan_config())
        alone = {
            modality: Corpora({name: sets[name] for name in names}, base.plan_config())
            for modality, names in together.by_modality.items()
        }
    except ValueError as error:
        parser.error(str(error))

    def results(name: str, corpora: Corpora, fraction: float) -> list[Result]:
        runs = recipe_runs(options.work, corpora, console)
        budget = budget_of(options).times(fraction)
        return [runs.result(Run(name, base.recipe(), budget, seed)) for seed in options.seeds]

    of_all = results("together", together, 1)
    for modality, corpora in alone.items():
        of_one = results(f"{modality}-alone", corpora, 1 / len(alone))
        both = {"alone": of_one, "together": of_all}
        print_figures(summarize("mixed", both, corpora, ["alone"]))


if __name__ == "__main__":
    main()
