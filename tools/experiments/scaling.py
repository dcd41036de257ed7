"""Bits per byte against training FLOPs, over sizes of `modern`: JSON lines.

    python tools/bench_scaling.py --work DIR [--minutes M | --flops F] [--seeds N,...] FOLDER ...

FOLDERs are as for `bench_quality.py`. The models of SIZES are trained one after another, each for
twice the time or the FLOPs of the one before, the last for M minutes or F FLOPs. All but the last
are fitted by

    bits per byte = floor + scale * FLOPs^-slope,   floor >= 0

for each modality, and by a power law, where floor = 0: few points leave the floor open, and what
the two say of more FLOPs is what can be said. The last size tells how far each is off where it was
not fitted. Each run has one thread and lasts by the time of the processor, as in
`bench_ablations.py`; what is finished lies in DIR.

    scaling/MODALITY/SIZE     bits/byte on `val`, the mean over seeds; `flops` of the training,
                              `spread` the standard error; `reference` is the fit's value there,
                              `power_law` that of the fit without a floor
    scaling/MODALITY/10x      what the fits say for ten times the last size's FLOPs; 100x too;
                              `reference` is the last size's figure
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from rich.console import Console

from bytelm.model.flops import costs, training_flops_per_byte
from bytelm.model.presets import modern
from bytelm.pipelines.config import OptimizerConfig
from bytelm.tools.experiments.ablations import build
from bytelm.tools.experiments.harness import (
    Corpora,
    Ledger,
    Result,
    Run,
    budget,
    experiment_parser,
    prepare_sets,
)
from bytelm.tools.experiments.recipes import BASE, Change, Recipe

SIZES = ((128, 2), (128, 3), (128, 5), (256, 2), (256, 4))
"""Width and layers of stage 0; for 8e13 FLOPs they take 540 to 1,700 steps of 8,192 bytes."""


@dataclass(frozen=True)
class Fit:
    """bits = floor + scale * flops^-slope."""

    floor: float
    scale: float
    slope: float

    @classmethod
    def of(cls, flops: Sequence[float], bits: Sequence[float], *, has_floor: bool) -> Fit:
        """The least squares, over slopes from 0.005 to 1."""
        x, y = np.log(np.asarray(flops)), np.asarray(bits)
        best, least = cls(0.0, 0.0, 0.0), math.inf
        for slope in np.linspace(0.005, 1.0, 399):
            falling = np.exp(-slope * (x - x[0]))
            floor, scale = 0.0, (falling @ y) / (falling @ falling)
            if has_floor:
                columns = np.stack([np.ones_like(falling), falling], axis=1)
                a, b = np.linalg.lstsq(columns, y, rcond=None)[0]
                if a >= 0:
                    floor, scale = a, b
            error = float(((floor + scale * falling - y) ** 2).sum())
            if error < least:
                best, least = cls(floor, scale * math.exp(slope * x[0]), slope), error
        return best

    def __call__(self, flops: float) -> float:
        return self.floor + self.scale * flops**-self.slope


def recipe(width: int, layers: int) -> Recipe:
    """`modern` of a size, for the base's rows."""
    return Recipe(replace(modern(width, layers), context=BASE.context), OptimizerConfig())


def main() -> None:
    """Run what is missing, and print."""
    parser = experiment_parser("Bits per byte against FLOPs.", minutes=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True, highlight=False)
    try:
        sets = prepare_sets(options.folders, options.work, console)
        corpora = Corpora(sets, Change().plan_config())
    except ValueError as error:
        parser.error(str(error))
    ledger = Ledger(options.work / "runs", corpora, build, console, time.process_time)
    results: dict[tuple[int, int], list[Result]] = {size: [] for size in SIZES}
    for seed in options.seeds:
        for i, size in enumerate(SIZES):
            each = budget(options).times(2.0 ** (i + 1 - len(SIZES)))
            name = f"modern-{size[0]}x{size[1]}"
            result = ledger.result(Run(name, recipe(*size), each, seed))
            if not result.steps:
                parser.error(f"{name} took no step in {each}: give more")
            results[size].append(result)
    for modality, names in corpora.by_modality.items():
        for figure in figures_of(modality, names, results):
            print(json.dumps(figure), flush=True)


def figures_of(
    modality: str, sets: Sequence[str], results: dict[tuple[int, int], list[Result]]
) -> list[dict[str, Any]]:
    """A figure for each size, and two of what the fit says beyond."""
    flops, bits, spreads = [], [], []
    for size, of_size in results.items():
        a_byte = training_flops_per_byte(recipe(*size).model)
        values = [result.bits_per_byte(sets) for result in of_size]
        flops.append(a_byte * BASE.context * fmean(result.steps for result in of_size))
        bits.append(fmean(values))
        spreads.append(stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None)
    fit = Fit.of(flops[:-1], bits[:-1], has_floor=True)
    power_law = Fit.of(flops[:-1], bits[:-1], has_floor=False)

    def figure(name: str, at: float, value: float, reference: float, **more: Any) -> dict[str, Any]:
        return {
            "name": f"scaling/{modality}/{name}",
            "value": value,
            "unit": "bits/byte",
            "reference": reference,
            "ratio": value / reference,
            "power_law": power_law(at),
            "flops": at,
            **more,
        }

    found = []
    for size, at, value, spread in zip(results, flops, bits, spreads, strict=True):
        count = sum(cost.parameters for cost in costs(recipe(*size).model))
        more = {"spread": spread, "parameters": count}
        found.append(figure(f"{size[0]}x{size[1]}", at, value, fit(at), **more))
    for times in (10, 100):
        at = times * flops[-1]
        slopes = {"floor": fit.floor, "slope": fit.slope, "power_law_slope": power_law.slope}
        found.append(figure(f"{times}x", at, fit(at), bits[-1], **slopes))
    return found


if __name__ == "__main__":
    main()
