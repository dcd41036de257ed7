"""What the losses of a run say: updates that were skipped, and losses that stand out.

Every rank keeps the same figures, from sums over all ranks, and a checkpoint holds them: a resumed
run marks and counts what the unbroken one would.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bytelm.pipelines.storage.files import write_atomic

STATE = "state.json"
MONITOR_KEY = "watch"
"""Key of the loss monitor in the file, as the first version named it."""
MAX_SKIPPED_IN_A_ROW = 3
MEMORY_STEPS = 50
"""Steps over which mean and variance of the loss look back, with weights that fall off."""
SPIKE_DEVIATIONS = 6.0


@dataclass(frozen=True)
class LossMonitor:
    """Figures of the steps so far."""

    counted: int = 0
    """Steps whose loss is in mean and variance."""
    mean: float = 0.0
    variance: float = 0.0
    skipped: int = 0
    """Updates skipped since the run began."""
    skipped_in_a_row: int = 0

    def is_spike(self, loss: float) -> bool:
        """Whether a loss stands more than SPIKE_DEVIATIONS above those before it."""
        above = loss - self.mean
        return (
            self.counted >= MEMORY_STEPS
            and math.isfinite(loss)
            and above > SPIKE_DEVIATIONS * math.sqrt(self.variance)
        )

    def after(self, loss: float, is_applied: bool) -> LossMonitor:
        """The figures with one step more."""
        if not is_applied:
            return replace(
                self, skipped=self.skipped + 1, skipped_in_a_row=self.skipped_in_a_row + 1
            )
        counted = self.counted + 1
        weight = 1 / min(counted, MEMORY_STEPS)
        above = loss - self.mean
        return LossMonitor(
            counted,
            self.mean + weight * above,
            (1 - weight) * (self.variance + weight * above * above),
            self.skipped,
            0,
        )


@dataclass(frozen=True)
class TrainState:
    """Where a run stands: the steps done, the next row of the data, and what was counted."""

    step: int
    epoch: int
    row: int
    plan: dict[str, Any]
    """Identity of the plan that `epoch` and `row` belong to."""
    ranks: int
    zero_stage: int
    masked_bytes: int = 0
    """Payload bytes that were damaged and masked so far."""
    loss_monitor: LossMonitor = field(default_factory=LossMonitor)


def read_state(folder: Path) -> TrainState:
    """The state in a checkpoint's folder."""
    values = json.loads((folder / STATE).read_text())
    monitor = LossMonitor(**values.pop(MONITOR_KEY))
    return TrainState(**values, loss_monitor=monitor)


def write_state(folder: Path, state: TrainState) -> Path:
    """Write the state to a checkpoint's folder; returns the file."""
    values = dataclasses.asdict(state)
    values[MONITOR_KEY] = values.pop("loss_monitor")
    write_atomic(folder / STATE, json.dumps(values, indent=1).encode())
    return folder / STATE
