"""What the losses of a run say: updates that were skipped, and losses that stand out.

Every rank keeps the same figures, from sums over all ranks, and a checkpoint holds them: a resumed
run marks and counts what the unbroken one would.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

STATE = "state.json"
MAX_SKIPPED_IN_A_ROW = 3
MEMORY_STEPS = 50
"""Steps over which mean and variance of the loss look back, with weights that fall off."""
SPIKE_DEVIATIONS = 6.0


@dataclass(frozen=True)
class Watch:
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

    def after(self, loss: float, is_applied: bool) -> Watch:
        """The figures with one step more."""
        if not is_applied:
            return replace(
                self, skipped=self.skipped + 1, skipped_in_a_row=self.skipped_in_a_row + 1
            )
        counted = self.counted + 1
        weight = 1 / min(counted, MEMORY_STEPS)
        above = loss - self.mean
        return Watch(
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
    watch: Watch = field(default_factory=Watch)


def read_state(folder: Path) -> TrainState:
    values = json.loads((folder / STATE).read_text())
    return TrainState(**{**values, "watch": Watch(**values["watch"])})
