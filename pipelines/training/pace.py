"""The pace of a run that has a limited time: how many steps fit, from what a step takes.

The number of steps is predicted before the run and corrected once, after the warm-up, whose
learning rates do not depend on it. So a run with the corrected number from the first step on takes
the same steps.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bytelm.pipelines.checkpoints.run_folder import CHOSEN_CONFIG_FILE
from bytelm.pipelines.config import RunConfig, plural
from bytelm.pipelines.config_writer import with_train_values
from bytelm.pipelines.storage.files import write_atomic

BUDGET_VARIABLE = "BYTELM_TIME_BUDGET"
"""Environment variable by which a launcher tells its ranks the budget."""
FIRST_STEPS = 4
"""First steps of a process, which are slow and are not measured."""
LEAST_STEPS = 10
"""Steps of the shortest run."""
EVALUATIONS = 4
END_SECONDS = 1.0
"""Time from the last sample to the end of the command."""


def evaluation_interval(steps: int) -> int:
    """Steps between two of a run's EVALUATIONS."""
    return math.ceil(steps / EVALUATIONS)


@dataclass(frozen=True)
class TimeBudget:
    """The time that a command may take, from its start to its end, and its parts outside steps."""

    started: float
    """`time.monotonic()` at the start, which all processes of a machine share."""
    seconds: float
    outside_seconds: float
    """Time of evaluations and checkpoints on a machine as fast as `step_seconds` says."""
    samples_seconds: float
    """Time that is kept free for samples after the last step."""
    step_seconds: float
    """Time of a step when the budget was planned."""
    most_steps: int
    """Steps after which the run ends before its time."""

    def steps(self, step_seconds: float, done: int, now: float) -> int:
        """Return the steps of the whole run, of which `done` are done at `now`.

        Evaluations and checkpoints are slower or faster by as much as steps are.
        """
        slowness = step_seconds / self.step_seconds
        left = self.started + self.seconds - now - slowness * self.outside_seconds
        left -= self.samples_seconds + END_SECONDS
        steps = max(LEAST_STEPS, done + max(1, int(left / step_seconds)))
        return min(self.most_steps, steps)

    def seconds_left(self) -> float:
        """Return the time that is left for samples, which are the last part of a run."""
        return max(0.0, self.started + self.seconds - END_SECONDS - time.monotonic())

    def tell_ranks(self) -> None:
        """Put the budget into the environment of processes that are started from here."""
        os.environ[BUDGET_VARIABLE] = json.dumps(asdict(self))

    @classmethod
    def of_launcher(cls) -> TimeBudget | None:
        """Return the budget that a launcher has told this rank, if any."""
        text = os.environ.get(BUDGET_VARIABLE)
        return cls(**json.loads(text)) if text else None


class Pace:
    """Measures the steps of the warm-up. Every rank has one; that of rank 0 counts."""

    def __init__(self, budget: TimeBudget, warmup_steps: int):
        self.budget = budget
        self.warmup_steps = warmup_steps
        self._first_step = 0
        self._begin = 0.0

    def is_due_after(self, step: int) -> bool:
        """Count a step of this process; whether it was the last one of the warm-up.

        A warm-up of which too little was seen, as after a resume, is not measured.
        """
        self._first_step = self._first_step or step
        if step == self._first_step + FIRST_STEPS:
            self._begin = time.monotonic()
        return step == self.warmup_steps and step > self._first_step + FIRST_STEPS

    def corrected(self, config: RunConfig) -> RunConfig:
        """Return the config with the steps that fit at the measured speed of the warm-up."""
        now = time.monotonic()
        step_seconds = (now - self._begin) / (self.warmup_steps - self._first_step - FIRST_STEPS)
        return with_steps(config, self.budget.steps(step_seconds, self.warmup_steps, now))


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    """Return a config with other steps, and evaluations and samples in the same parts of the run.

    Intervals that were not chosen for the number of steps stay.
    """
    train = config.train
    changed = replace(train, steps=steps)
    if train.eval_every == evaluation_interval(train.steps):
        changed = replace(changed, eval_every=evaluation_interval(steps))
    if train.sample_every == train.steps:
        changed = replace(changed, sample_every=steps)
    return replace(config, train=changed)


def write_steps(run: Path, config: RunConfig, planned: int) -> None:
    """Write corrected steps into the chosen config of a run; `planned` are those before."""
    path = run / CHOSEN_CONFIG_FILE
    remark = f"corrected after the warm-up; {plural(planned, 'step was', 'steps were')} planned"
    values = {
        "steps": (config.train.steps, remark),
        "eval_every": (config.train.eval_every, ""),
        "sample_every": (config.train.sample_every, ""),
    }
    write_atomic(path, with_train_values(path.read_text("utf-8"), values).encode())
