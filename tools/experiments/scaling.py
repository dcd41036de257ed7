"""Bits per byte against training FLOPs, over sizes of `modern`.

    python -m bytelm.tools.experiments.scaling --work DIR [--minutes M | --flops F] [--seeds N,...]
        FOLDER ...

FOLDERs are as for `quality_table.py`. The models of SIZES are trained one after another, each for
twice the time or FLOPs of the preceding one, the last for M minutes (20 by default) or F FLOPs.
All but the last are fitted by

    bits per byte = floor + scale * FLOPs^-slope,   floor >= 0

for each modality, and by a power law, where floor = 0. Scores are of the network alone, without
mixing in its output. Few points leave the floor open, so the two
fits bound what can be said of more FLOPs. The last size shows the error of each outside the fitted
range. Each run has one thread and lasts by the processor's time, as in `ablations.py`: 80 minutes
in all for two seeds. Finished runs are kept in DIR, and the same command continues after a stop.

Prints a JSON line a figure:

    scaling/MODALITY/SIZE     bits/byte on `val`, the mean over seeds; `flops` of the training,
                              `spread` the standard error; `reference` is the fit's value at these
                              FLOPs, `power_law` that of the fit without a floor
    scaling/MODALITY/10x      the fits' values at ten times the last size's FLOPs, 100x likewise;
                              `reference` is the last size's figure

`ratio` = value / reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console

from bytelm.model.flops import costs, training_flops_per_byte
from bytelm.model.presets import modern
from bytelm.pipelines.config import OptimizerConfig
from bytelm.tools.benchmarks.measure import Figure, print_figures
from bytelm.tools.experiments.command_line import budget_of, experiment_parser
from bytelm.tools.experiments.corpora import Corpora, prepare_sets
from bytelm.tools.experiments.harness import Result, Run, standard_error
from bytelm.tools.experiments.recipes import BASE, Change, Recipe, recipe_runs

Size = tuple[int, int]
"""Width and layers of stage 0."""
SIZES: tuple[Size, ...] = ((128, 2), (128, 3), (128, 5), (256, 2), (256, 4))
"""Sizes to train. 8e13 FLOPs are 540 to 1,700 steps of 8,192 bytes."""


@dataclass(frozen=True)
class Fit:
    """bits = floor + scale * flops^-slope."""

    floor: float
    scale: float
    slope: float

    @classmethod
    def of(cls, flops: Sequence[float], bits: Sequence[float], *, has_floor: bool) -> Fit:
        """Least-squares fit over slopes from 0.005 to 1, with or without a floor."""
        x, y = np.log(np.asarray(flops)), np.asarray(bits)
        best, least_error = cls(0.0, 0.0, 0.0), math.inf
        for slope in np.linspace(0.005, 1.0, 399):
            falling = np.exp(-slope * (x - x[0]))
            floor, scale = 0.0, (falling @ y) / (falling @ falling)
            if has_floor:
                columns = np.stack([np.ones_like(falling), falling], axis=1)
                fitted_floor, fitted_scale = np.linalg.lstsq(columns, y, rcond=None)[0]
                if fitted_floor >= 0:
                    floor, scale = fitted_floor, fitted_scale
            error = float(((floor + scale * falling - y) ** 2).sum())
            if error < least_error:
                best = cls(floor, scale * math.exp(slope * x[0]), slope)
                least_error = error
        return best

    def __call__(self, flops: float) -> float:
        """Bits per byte at these FLOPs."""
        return self.floor + self.scale * flops**-self.slope


def recipe(width: int, layers: int) -> Recipe:
    """`modern` of a size, for the base's rows."""
    return Recipe(
        replace(modern(width, layers), context=BASE.context, output_mixing=False), OptimizerConfig()
    )


@dataclass(frozen=True)
class Point:
    """Mean result of a size."""

    flops: float
    bits: float
    spread: float | None
    parameters: int


def _point(size: Size, results: Sequence[Result], sets: Sequence[str]) -> Point:
    """Mean over seeds on the sets."""
    model = recipe(*size).model
    bits = [result.bits_per_byte(sets) for result in results]
    steps = fmean(result.steps for result in results)
    return Point(
        flops=training_flops_per_byte(model) * BASE.context * steps,
        bits=fmean(bits),
        spread=standard_error(bits),
        parameters=sum(cost.parameters for cost in costs(model)),
    )


def scaling_figures(
    modality: str, sets: Sequence[str], results: Mapping[Size, Sequence[Result]]
) -> Iterator[Figure]:
    """A figure for each size beside the fit, and two of the fit beyond the last size.

    Args:
        sets: names of the modality's sets.
        results: of each size, one for each seed.
    """
    points = {size: _point(size, of_seeds, sets) for size, of_seeds in results.items()}
    *fitted, last = points.values()
    flops, bits = [point.flops for point in fitted], [point.bits for point in fitted]
    fit = Fit.of(flops, bits, has_floor=True)
    power_law = Fit.of(flops, bits, has_floor=False)

    def figure(
        name: str, flops: float, value: float, reference: float, details: dict[str, Any]
    ) -> Figure:
        details = {"power_law": power_law(flops), "flops": flops, **details}
        return Figure(f"scaling/{modality}/{name}", value, "bits/byte", reference, details)

    for (width, layers), point in points.items():
        details = {"spread": point.spread, "parameters": point.parameters}
        name = f"{width}x{layers}"
        yield figure(name, point.flops, point.bits, fit(point.flops), details)
    slopes = {"floor": fit.floor, "slope": fit.slope, "power_law_slope": power_law.slope}
    for factor in (10, 100):
        more_flops = factor * last.flops
        yield figure(f"{factor}x", more_flops, fit(more_flops), last.bits, slopes)


def main() -> None:
    """Run what is missing, and print."""
    parser = experiment_parser("Bits per byte against training FLOPs.", minutes=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True, highlight=False)
    try:
        sets = prepare_sets(options.folders, options.work, console)
        corpora = Corpora(sets, Change().plan_config())
    except ValueError as error:
        parser.error(str(error))
    runs = recipe_runs(options.work, corpora, console)
    results: dict[Size, list[Result]] = {size: [] for size in SIZES}
    for seed in options.seeds:
        for i, size in enumerate(SIZES):
            budget = budget_of(options).times(2.0 ** (i + 1 - len(SIZES)))
            name = f"modern-{size[0]}x{size[1]}"
            result = runs.result(Run(name, recipe(*size), budget, seed))
            if not result.steps:
                parser.error(f"{name} took no step in {budget}: give more")
            results[size].append(result)
    for modality, names in corpora.by_modality.items():
        print_figures(scaling_figures(modality, names, results))


if __name__ == "__main__":
    main()
