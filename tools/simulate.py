"""What preparing and training cost on clusters that are not here, and where they break.

    python -m bytelm.tools.simulate [--json]
    python -m bytelm.tools.simulate --measure costs.json
    python -m bytelm.tools.simulate --costs costs.json --tb 1000 --ranks 1024 --model modern-7b

Costs of single operations, measured on one machine, are carried to sets of 1, 100 and 1,000 TB and
to trainings of 8, 64 and 1,024 ranks, under the assumptions of `simulation/cluster.py`. Prints a
table: for each set and each number of ranks what `prepare` (one machine, parts and `merge`, Ray),
the start of a training, its data (from a shared filesystem and from an object store), checkpoints
and failures cost, which resource decides, and what breaks. `--json` prints a line for each value:
`name` (`TB/RANKS/THING`), `value`, `unit`, `bound` and `breaks`. `--measure FILE` measures the
costs of this machine in a minute or two and writes them; the default ones are those of
`simulation/costs.json`. It needs the packages of development (`make setup`).
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bytelm.pipelines.runtime.tables import print_table
from bytelm.tools.simulation.cluster import Cluster, Workload
from bytelm.tools.simulation.costs import COSTS_FILE, Costs
from bytelm.tools.simulation.estimate import Estimate
from bytelm.tools.simulation.prepare_model import PrepareModel
from bytelm.tools.simulation.training_model import TrainingModel

SIZES_TB = (1.0, 100.0, 1000.0)
RANKS = (8, 64, 1024)
MODEL = "modern-1b"

Scale = tuple[float, int]
"""Terabytes of a set, and ranks."""
Simulation = dict[Scale, list[Estimate]]


def simulate(costs: Costs, scales: Sequence[Scale], model: str) -> Simulation:
    """The estimates of each scale for a preset; ValueError for a name that is none."""
    estimates = {}
    for terabytes, ranks in scales:
        cluster, workload = Cluster(ranks), Workload(1e12 * terabytes)
        estimates[terabytes, ranks] = [
            *PrepareModel(costs.prepare, cluster, workload).estimates(),
            *TrainingModel(costs.training, cluster, workload, model).estimates(),
        ]
    return estimates


def json_lines(simulation: Simulation) -> Iterator[str]:
    """A JSON object for each estimate."""
    for (terabytes, ranks), estimates in simulation.items():
        for estimate in estimates:
            scale = f"{terabytes:g}TB/{ranks}"
            values = vars(estimate)
            yield json.dumps({**values, "name": f"{scale}/{estimate.name}"})


def print_simulation(console: Console, simulation: Simulation) -> None:
    """Print a row for each thing and a column for each scale, then what breaks where."""
    table = Table("", *(f"{tb:g} TB, {ranks}" for tb, ranks in simulation), box=None)
    for rows in zip(*simulation.values(), strict=True):
        cells = (f"{_with_unit(row)}{' *' if row.breaks else ''}" for row in rows)
        table.add_row(rows[0].name, *cells)
    print_table(console, table)
    console.print("\n* breaks:")
    for (terabytes, ranks), estimates in simulation.items():
        for row in estimates:
            if row.breaks:
                line = f"{terabytes:g} TB, {ranks} ranks: {row.name}: {row.breaks}"
                console.print(line, highlight=False, soft_wrap=True)


def _with_unit(estimate: Estimate) -> str:
    """The value with three digits, in the unit that suits its size."""
    value = estimate.value
    scales = {
        "s": ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")),
        "bytes": ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")),
        "bytes/s": ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")),
    }.get(estimate.unit, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")))
    for scale, name in scales:
        if value >= scale:
            return f"{value / scale:.3g} {name}".rstrip()
    return f"{value:.2g}"


def measure() -> Costs:
    """Measure the costs of this machine."""
    from bytelm.tools.simulation.measure_prepare import PrepareAmounts, measure_prepare
    from bytelm.tools.simulation.measure_training import TrainingAmounts, measure_training

    prepare = measure_prepare(PrepareAmounts())
    return Costs(_processor(), str(date.today()), prepare, measure_training(TrainingAmounts()))


def _processor() -> str:
    """The processor's name as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def main() -> None:
    """Simulate, or measure."""
    parser = argparse.ArgumentParser(description="Costs of preparing and training on clusters.")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="measure costs, write them")
    parser.add_argument("--costs", type=Path, default=COSTS_FILE, metavar="FILE")
    parser.add_argument(
        "--tb", type=float, nargs="+", default=SIZES_TB, help="sizes of sets, in TB"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="ranks of trainings")
    parser.add_argument("--model", default=MODEL, metavar="PRESET")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args()
    try:
        if options.measure:
            measure().save(options.measure)
            return
        scales = list(product(options.tb, options.ranks))
        simulation = simulate(Costs.load(options.costs), scales, options.model)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.json:
        print("\n".join(json_lines(simulation)))
    else:
        print_simulation(Console(), simulation)


if __name__ == "__main__":
    main()
