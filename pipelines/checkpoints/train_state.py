"""The state of a run beside weights and optimizer: its progress, and the statistics of its loss.

Every rank computes the same state from sums over all ranks, and a checkpoint stores it, so a
resumed run marks the spikes and counts the skipped updates that an unbroken run would.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bytelm.pipelines.storage.files import write_atomic

STATE_FILE = "state.json"
MONITOR_KEY = "watch"
"""Key of the loss monitor in the file; the first version chose the name."""
MAX_SKIPPED_IN_A_ROW = 3
AVERAGED_STEPS = 50
"""Time constant, in steps, of the exponential moving mean and variance of the loss."""
SPIKE_DEVIATIONS = 6.0
"""Standard deviations above the mean from which a loss is a spike."""


@dataclass(frozen=True)
class LossMonitor:
    """Moving mean and variance of the loss, and the number of skipped updates."""

    counted: int = 0
    """Steps whose loss is in mean and variance."""
    mean: float = 0.0
    variance: float = 0.0
    skipped: int = 0
    """Updates skipped since the run began."""
    skipped_in_a_row: int = 0

    def is_spike(self, loss: float) -> bool:
        """Return whether a loss lies more than SPIKE_DEVIATIONS above the preceding ones."""
        return (
            self.counted >= AVERAGED_STEPS
            and math.isfinite(loss)
            and loss - self.mean > SPIKE_DEVIATIONS * math.sqrt(self.variance)
        )

    def after(self, loss: float, is_applied: bool) -> LossMonitor:
        """Return the monitor after one more step; `is_applied` is False for a skipped update."""
        if not is_applied:
            return replace(
                self, skipped=self.skipped + 1, skipped_in_a_row=self.skipped_in_a_row + 1
            )
        counted = self.counted + 1
        weight = 1 / min(counted, AVERAGED_STEPS)
        deviation = loss - self.mean
        return LossMonitor(
            counted=counted,
            mean=self.mean + weight * deviation,
            variance=(1 - weight) * (self.variance + weight * deviation * deviation),
            skipped=self.skipped,
            skipped_in_a_row=0,
        )


@dataclass(frozen=True)
class TrainState:
    """Progress of a run: the steps done, the next row of the data, and the running counts."""

    step: int
    epoch: int
    row: int
    plan: dict[str, Any]
    """Identity of the plan that `epoch` and `row` refer to."""
    ranks: int
    zero_stage: int
    masked_bytes: int = 0
    """Payload bytes that were damaged and masked so far."""
    loss_monitor: LossMonitor = field(default_factory=LossMonitor)


def read_state(folder: Path) -> TrainState:
    """Read the state in a checkpoint's folder."""
    values = json.loads((folder / STATE_FILE).read_text())
    loss_monitor = LossMonitor(**values.pop(MONITOR_KEY))
    return TrainState(**values, loss_monitor=loss_monitor)


def write_state(folder: Path, state: TrainState) -> Path:
    """Write the state to a checkpoint's folder; returns the file."""
    values = dataclasses.asdict(state)
    values[MONITOR_KEY] = values.pop("loss_monitor")
    write_atomic(folder / STATE_FILE, json.dumps(values, indent=1).encode())
    return folder / STATE_FILE
