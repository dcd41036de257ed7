"""What checkpoints and failures cost a training, by a formula and by playing through the events.

A checkpoint is copied while the step waits, then written beside the steps; it counts once it is
written. A failure costs the steps since the last checkpoint that counts, and a restart.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointTimes:
    """Times in seconds."""

    interval: float
    """Steps between two checkpoints."""
    copy: float
    """The steps wait for it."""
    write: float
    """Beside the steps."""
    restart: float
    """From a failure to the next step."""
    mtbf: float
    """Mean time between failures of any node, which are independent of each other."""

    @property
    def best_interval(self) -> float:
        """The interval that loses least time: that of Young (1974), or as long as it takes to
        write one."""
        return max(math.sqrt(2 * self.copy * self.mtbf), self.write)


def expected_loss(times: CheckpointTimes) -> float:
    """Share of the time that is lost, if failures are rare beside intervals.

    A failure meets an interval in its middle on average, and finds the checkpoint at its begin
    only if that was written meanwhile.
    """
    per_failure = times.interval / 2 + times.write + times.restart
    return min(1.0, times.copy / (times.interval + times.copy) + per_failure / times.mtbf)


def simulated_loss(times: CheckpointTimes, failures: int, seed: int = 0) -> float:
    """Share of the time that is lost over many failures, drawn with exponential distances."""
    rng = random.Random(seed)
    elapsed = kept = 0.0
    for _ in range(failures):
        until_failure = rng.expovariate(1 / times.mtbf)
        elapsed += until_failure
        kept += _kept_steps(times, until_failure)
    return 1 - kept / elapsed


def _kept_steps(times: CheckpointTimes, until_failure: float) -> float:
    """Seconds of steps that are not lost, between one failure and the next."""
    cycle = times.interval + times.copy
    working = until_failure - times.restart
    if working <= 0:
        return 0.0
    begun = math.floor(working / cycle)
    is_written = working - begun * cycle >= times.write
    return max(0, begun if is_written else begun - 1) * times.interval
