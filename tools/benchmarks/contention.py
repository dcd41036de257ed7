"""Speed of training beside other work on the same cores.

    python -m bytelm.tools.benchmarks.contention [--steps N] [--rounds N] [--cases NAME ...]
        [--wait SPINS ...]

Prints a JSON line a figure: `name`, `value`, `unit`, `reference` and `ratio` (value / reference).
`bytelm train` runs on the demo's texts with as many threads as there are cores, alone and beside
other processes. Takes about six minutes on two cores with `--rounds 1`.

    contention/alone          bytes/s; reference: the same with OpenMP's default wait
    contention/busy           bytes/s beside one busy process a core; reference: the fair share,
                              half of the speed alone
    contention/two            bytes/s of the slower of two trainings side by side; reference: half
                              of the speed alone
    contention/two-and-busy   the same beside a busy process; reference: the fair share
    contention/evaluate       beside an evaluation that is repeated; reference: half of the speed
                              alone
    contention/processes      with `--processes`, one a core, beside one busy process a core;
                              reference: half of the speed of the same alone
    contention/workers        the same with one data worker a core

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

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
START_SECONDS = 0.5
"""Seconds that processes beside a training get to start; evaluations start beside it."""
BUSY = "while True: pass"
EVALUATE = """
import sys
from bytelm.pipelines.cli.main import main
from bytelm.pipelines.runtime.threads import share_cores
share_cores()
run, shard_set = sys.argv[1:]
while main(["evaluate", run, "--data", shard_set, "--split", "train"]) == 0:
    pass
"""
"""Evaluations of a run, one after the other in one process."""


class Case(NamedTuple):
    """Trainings, and what else wants the cores."""

    trainings: int = 1
    busy: int = 0
    """Processes that compute all the time."""
    evaluations: int = 0
    """Evaluations that are repeated all the time."""
    options: tuple[str, ...] = ()
    """Further arguments of each training."""

    @property
    def fair_share(self) -> float:
        """Part of its speed alone that a training keeps where each thread has an equal share."""
        threads = (self.trainings + self.evaluations) * CORES + self.busy
        return min(1.0, CORES / threads)


CASES = {
    "alone": Case(),
    "busy": Case(busy=CORES),
    "two": Case(trainings=2),
    "two-and-busy": Case(trainings=2, busy=1),
    "evaluate": Case(evaluations=1),
    "processes": Case(
        busy=CORES,
        options=("--processes", str(CORES), "--set", f"train.global_batch={CORES}"),
    ),
    "workers": Case(busy=CORES, options=("--set", f"data.workers={CORES}")),
}


def contention_figures(
    folder: Path, steps: int, rounds: int, cases: Sequence[str], wait: str | None
) -> Iterator[Figure]:
    """Figures of one way to wait.

    Args:
        folder: an empty folder for the set and the runs.
        steps: measured steps of each run.
        rounds: runs of each kind, whose median is the figure.
        cases: names of CASES.
        wait: number of spins, None for bytelm's own.
    """
    suffix = "" if wait is None else f"/{wait}"
    runs = _Runs(folder, steps)
    alone: dict[tuple[str, ...], float] = {}  # by the arguments of the training
    for name in cases:
        case = CASES[name]
        if case.options not in alone:
            by_itself = Case(options=case.options)
            alone[case.options] = median(min(runs.speeds(by_itself, wait)) for _ in range(rounds))
        if name == "alone":
            speed = alone[case.options]
            reference = median(min(runs.speeds(case, DEFAULT_WAIT)) for _ in range(rounds))
        else:
            speed = median(min(runs.speeds(case, wait)) for _ in range(rounds))
            reference = alone[case.options] * case.fair_share
        yield Figure(f"contention/{name}{suffix}", speed, "bytes/s", reference)


class _Runs:
    """Trainings of one config on the demo's texts, each into a folder of its own."""

    def __init__(self, folder: Path, steps: int):
        self._folder = folder
        self._set, self._config = folder / "text", folder / "run.yaml"
        run_bytelm("prepare", DEMO_FILES / "text", "--out", self._set)
        values = {
            "model": "modern-demo",
            "data": {"sets": [{"path": str(self._set)}]},
            "train": {"steps": WARM_UP_STEPS + steps, "eval_rows": 1},
        }
        self._config.write_text(yaml.safe_dump(values))
        self._runs: list[Path] = []

    def speeds(self, case: Case, wait: str | None) -> list[float]:
        """Bytes per second of each of a case's trainings, while all of them train."""
        variables = {
            k: v for k, v in os.environ.items() if k not in (WAIT_VARIABLE, "OMP_NUM_THREADS")
        }
        if wait is not None:
            variables[WAIT_VARIABLE] = wait
        beside = [[sys.executable, "-c", BUSY]] * case.busy
        if case.evaluations:
            command = [sys.executable, "-c", EVALUATE, str(self._runs[0]), str(self._set)]
            beside += [command] * case.evaluations
        with _processes(beside, variables):
            return self._train(case, variables)

    def _train(self, case: Case, variables: Mapping[str, str]) -> list[float]:
        """Run a case's trainings side by side."""
        first = len(self._runs)
        folders = [self._folder / f"run-{first + n}" for n in range(case.trainings)]
        self._runs += folders
        command = [sys.executable, "-m", "bytelm", "train", str(self._config), *case.options]
        processes = [
            subprocess.Popen([*command, "--out", run], stdout=subprocess.PIPE, env=variables)
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
def _processes(commands: Sequence[Sequence[str]], variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that run until they are killed."""
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables
        )
        for command in commands
    ]
    if processes:
        time.sleep(START_SECONDS)
    try:
        yield
        ended = [process.args for process in processes if process.poll() is not None]
        assert not ended, f"ended early: {ended}"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of training beside other work.")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        metavar="NAME",
        help=f"figures to measure, of {', '.join(CASES)}",
    )
    parser.add_argument("--wait", nargs="+", metavar="SPINS", help="numbers of spins to compare")
    options = parser.parse_args(arguments)
    for wait in options.wait or [None]:
        with tempfile.TemporaryDirectory() as folder:
            print_figures(
                contention_figures(Path(folder), options.steps, options.rounds, options.cases, wait)
            )


if __name__ == "__main__":
    main()
