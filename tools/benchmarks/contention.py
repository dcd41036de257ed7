"""Speed of training beside other work on the same cores.

    python -m bytelm.tools.benchmarks.contention [--steps N] [--rounds N] [--wait SPINS ...]

Prints a JSON line a figure: `name`, `value`, `unit`, `reference` and `ratio` (value / reference).
`bytelm train` runs on the demo's texts with as many threads as there are cores, alone and beside
other processes. Takes about ten minutes on two cores.

    contention/alone          bytes/s; reference: the same with OpenMP's default wait
    contention/busy           bytes/s beside one busy process a core; reference: the fair share,
                              half of the speed alone
    contention/two            bytes/s of the slower of two trainings side by side; reference: half
                              of the speed alone
    contention/two-and-busy   the same beside a busy process; reference: the fair share

With `--wait`, the figures of each fixed number of spins are printed under its name; without, those
of bytelm as it is, whose threads spin less while others want the cores (`runtime/threads.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import yaml

from bytelm.pipelines.training.metrics_logger import METRICS
from bytelm.tools.benchmarks.measure import Figure, print_figures
from bytelm.tools.repository import DEMO_FILES, run_bytelm

CORES = os.cpu_count() or 1
WAIT_VARIABLE = "GOMP_SPINCOUNT"
DEFAULT_WAIT = "300000"
"""Spins of libgomp where nothing else is set and the threads are no more than the cores."""
WARM_UP_STEPS = 3
"""Steps that are not measured."""
BUSY = "while True: pass"


def contention_figures(folder: Path, steps: int, rounds: int, wait: str | None) -> Iterator[Figure]:
    """Figures of one way to wait; `wait` is the number of spins, None for bytelm's own."""
    config = _write_config(folder, steps)
    suffix = "" if wait is None else f"/{wait}"
    runs = _Runs(config, folder)
    ours, theirs = [], []
    for _ in range(rounds):
        ours += runs.speeds(1, wait)
        theirs += runs.speeds(1, DEFAULT_WAIT)
    alone = median(ours)
    yield Figure(f"contention/alone{suffix}", alone, "bytes/s", median(theirs))
    for name, trainings, busy in (("busy", 1, CORES), ("two", 2, 0), ("two-and-busy", 2, 1)):
        slowest = []
        for _ in range(rounds):
            with _busy_processes(busy):
                slowest.append(min(runs.speeds(trainings, wait)))
        share = min(1.0, CORES / (trainings * CORES + busy))
        yield Figure(f"contention/{name}{suffix}", median(slowest), "bytes/s", alone * share)


def _write_config(folder: Path, steps: int) -> Path:
    """Prepare the demo's texts, and write the config of a run on them."""
    shard_set, config = folder / "text", folder / "run.yaml"
    run_bytelm("prepare", DEMO_FILES / "text", "--out", shard_set)
    values = {
        "model": "modern-demo",
        "data": {"sets": [{"path": str(shard_set)}]},
        "train": {"steps": WARM_UP_STEPS + steps, "eval_rows": 1},
    }
    config.write_text(yaml.safe_dump(values))
    return config


class _Runs:
    """Trainings of one config, each into a folder of its own."""

    def __init__(self, config: Path, folder: Path):
        self._config = config
        self._folder = folder
        self._count = 0

    def speeds(self, trainings: int, wait: str | None) -> list[float]:
        """Bytes per second of each of some trainings side by side, while all of them train."""
        variables = {
            k: v for k, v in os.environ.items() if k not in (WAIT_VARIABLE, "OMP_NUM_THREADS")
        }
        if wait is not None:
            variables[WAIT_VARIABLE] = wait
        folders = [self._folder / f"run-{self._count + n}" for n in range(trainings)]
        self._count += trainings
        command = [sys.executable, "-m", "bytelm", "train", str(self._config), "--out"]
        processes = [
            subprocess.Popen([*command, str(run)], stdout=subprocess.PIPE, env=variables)
            for run in folders
        ]
        for process in processes:
            process.communicate()
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command)
        return [_speed(run) for run in folders]


def _speed(run: Path) -> float:
    """Median bytes per second over the measured steps of a run."""
    lines = [json.loads(line) for line in (run / METRICS).read_text("utf-8").splitlines()]
    steps = [line for line in lines if line["kind"] == "train"][WARM_UP_STEPS:]
    return median(line["bytes_per_second"] for line in steps)


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    """Processes that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of training beside other work.")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--wait", nargs="+", metavar="SPINS", help="numbers of spins to compare")
    options = parser.parse_args(arguments)
    for wait in options.wait or [None]:
        with tempfile.TemporaryDirectory() as folder:
            print_figures(contention_figures(Path(folder), options.steps, options.rounds, wait))


if __name__ == "__main__":
    main()
