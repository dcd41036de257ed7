"""Bits per byte of one model for all modalities beside a model for each: JSON lines.

    python tools/bench_mixed.py --work DIR [--minutes M | --flops F] [--seeds N,...] FOLDER ...

FOLDERs are as for `bench_quality.py`. One `modern` model is trained on all of them for M minutes,
or F FLOPs, and one on each modality's alone for an equal part of that. Each run has one thread and
lasts by the time of the processor, as in `bench_ablations.py`; what is finished lies in DIR.

    mixed/MODALITY/alone       bits/byte on `val` of a model for it alone: the mean over seeds;
    mixed/MODALITY/together    the one model for all; `spread` is the standard error, `reference`
                               the mean of the model alone
"""

from __future__ import annotations

import json
import time

import torch
from rich.console import Console

from bytelm.tools.experiments.ablations import build
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
from bytelm.tools.experiments.recipes import ABLATIONS


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

    def results(name: str, corpora: Corpora, share: float) -> list[Result]:
        ledger = Ledger(options.work / "runs", corpora, build, console, time.process_time)
        each = budget(options).times(share)
        runs = [Run(name, base.recipe(), each, seed) for seed in options.seeds]
        return [ledger.result(run) for run in runs]

    of_all = results("together", together, 1)
    for modality, corpora in alone.items():
        of_one = results(f"{modality}-alone", corpora, 1 / len(alone))
        found = {"alone": of_one, "together": of_all}
        for figure in figures("mixed", found, corpora, ["alone"]):
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
