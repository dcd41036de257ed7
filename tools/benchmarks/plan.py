"""Time and memory of a plan of rows over a large set.

    python -m bytelm.tools.benchmarks.plan [SHARDS [DOCUMENTS]]

Makes a synthetic set (`large_set.py`) of SHARDS shards of DOCUMENTS documents each, 250,000 of
1,000 by default, whose counts of rows are there, and prints a JSON line a figure; takes some
minutes, most of it to make the set and to remove it.

    plan/make                     seconds to make the set
    plan/open, plan/open-memory   seconds to open the set in a fresh process, and MB that it takes
                                  beyond its imports
    plan/load                     seconds to make the plan from the counts
    plan/rows                     rows of the plan
    plan/random-row               milliseconds to find a random row, the mean of 500
    plan/random-row-processor     the same by the processor's time, which other processes on the
                                  machine do not change
    .../-worst                    the slowest of the 500, for both clocks
    plan/memory                   MB beyond the imports: the peak of a process that finds these rows
    plan/first-step               seconds from the start of `bytelm train` to the end of its first
                                  step, beside those with a set of one shard
    plan/count                    documents that one process counts in a second of processor time,
                                  on a tenth of the shards at most

Objects that exist once the plan is loaded are frozen first, as in training, since a full pass of
Python's garbage collector takes longer than a row.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.counting import count_rows
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source, open_plan
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.metrics_logger import METRICS
from bytelm.tools.benchmarks.large_set import write_large_set
from bytelm.tools.benchmarks.measure import (
    Figure,
    in_fresh_process,
    peak_resident,
    print_figures,
    processor_seconds_of,
    reset_peak,
    resident,
    seconds_of,
)

CONFIG = PlanConfig(8192, 8, vars(ViewsConfig()))
LOOK_UPS = 500
COUNTED_DOCUMENTS = 1_000_000
MODEL = {
    "stages": [{"width": 64, "layers": 1, "heads": 1}, {"width": 64, "layers": 1, "heads": 1}],
    "patch_sizes": [CONFIG.patch],
    "context": CONFIG.row_length,
}
"""So small that a step takes no time beside the rest of the command."""


def plan_figures(shards: int, documents: int) -> Iterator[Figure]:
    """Figures of a set of `shards` shards of `documents` documents each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "large"
        began = time.perf_counter()
        write_large_set(folder, shards, documents, CONFIG)
        yield Figure("plan/make", time.perf_counter() - began, "s")
        seconds, size = in_fresh_process(_cost_of_opening, folder)
        yield Figure("plan/open", seconds, "s", 0.1)
        yield Figure("plan/open-memory", size / 1e6, "MB", 50.0)
        yield from in_fresh_process(_plan_figures, folder)
        write_large_set(Path(name) / "small", 1, documents, CONFIG)
        small = _first_step(Path(name) / "small")
        yield Figure("plan/first-step", _first_step(folder), "s", small)
        yield _counting_speed(folder, documents)


def _cost_of_opening(folder: Path) -> tuple[float, int]:
    """Seconds and bytes of memory to open a set."""
    before = resident()
    reset_peak()
    seconds = seconds_of(lambda: ShardSet(folder))
    return seconds, peak_resident() - before


def _plan_figures(folder: Path) -> list[Figure]:
    """Figures of a plan and its rows, and of the memory of this process."""
    before = resident()
    reset_peak()
    began = time.perf_counter()
    plan = open_plan([Source(ShardSet(folder))], CONFIG)
    load = Figure("plan/load", time.perf_counter() - began, "s")
    rows = Figure("plan/rows", plan.rows(0), "rows")
    look_ups = list(_look_up_figures(plan))
    memory = Figure("plan/memory", (peak_resident() - before) / 1e6, "MB")
    return [load, rows, *look_ups, memory]


def _look_up_figures(plan: Plan) -> Iterator[Figure]:
    """Mean and worst time of random rows, by the clock and by the processor's time."""
    gc.freeze()
    clock, processor = [], []
    for row in np.random.default_rng(1).integers(0, plan.rows(0), LOOK_UPS).tolist():
        began, processor_began = time.perf_counter(), time.thread_time()
        plan.row(0, row)
        clock.append(1e3 * (time.perf_counter() - began))
        processor.append(1e3 * (time.thread_time() - processor_began))
    gc.unfreeze()
    for name, milliseconds in (("random-row", clock), ("random-row-processor", processor)):
        yield Figure(f"plan/{name}", float(np.mean(milliseconds)), "ms", 10.0)
        yield Figure(f"plan/{name}-worst", max(milliseconds), "ms")


def _first_step(folder: Path) -> float:
    """Seconds from the start of `bytelm train` on a set to the end of the first step."""
    with tempfile.TemporaryDirectory() as name:
        config, run = Path(name) / "run.yaml", Path(name) / "run"
        data = {"sets": [{"path": str(folder)}]}
        train = {"steps": 2, "global_batch": 1, "log_every": 1}
        config.write_text(yaml.safe_dump({"model": MODEL, "data": data, "train": train}))
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "bytelm", "train", str(config), "--out", str(run)],
            stdout=subprocess.DEVNULL,
        ) as process:
            while not _has_step(run / METRICS):
                if process.poll():
                    raise RuntimeError(f"bytelm train ended with status {process.returncode}")
                time.sleep(0.02)
            return time.perf_counter() - began


def _has_step(metrics: Path) -> bool:
    """Whether a step stands in a run's metrics."""
    return metrics.exists() and '"kind": "train"' in metrics.read_text()


def _counting_speed(folder: Path, documents: int) -> Figure:
    """Documents that one process counts in a second of processor time."""
    shard_set = ShardSet(folder)
    shards = shard_set.split("train")
    chosen = shards[: min(-(-COUNTED_DOCUMENTS // documents), -(-len(shards) // 10))]
    seconds = processor_seconds_of(lambda: count_rows(shard_set, chosen, CONFIG))
    return Figure("plan/count", len(chosen) * documents / seconds, "documents/s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time and memory of a plan over a large set.")
    parser.add_argument("shards", type=int, nargs="?", default=250_000, metavar="SHARDS")
    parser.add_argument(
        "documents", type=int, nargs="?", default=1_000, metavar="DOCUMENTS", help="of each shard"
    )
    options = parser.parse_args()
    print_figures(plan_figures(options.shards, options.documents))


if __name__ == "__main__":
    main()
