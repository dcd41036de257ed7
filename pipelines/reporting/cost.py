"""The cost of a run: time, steps, bytes, epochs, parameters, FLOPs and memory."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from bytelm.model.config import ModelConfig
from bytelm.model.flops import costs, training_flops_per_byte
from bytelm.pipelines.reporting.config_lines import bytes_per_step
from bytelm.pipelines.reporting.run_data import RunData, section


@dataclass(frozen=True)
class Cost:
    """The cost of a run so far; None is unknown."""

    steps: int
    planned_steps: int
    seconds: float | None
    is_estimated: bool
    """Whether `seconds` is summed from the throughput, without evaluations and checkpoints."""
    ids: int
    """Ids that were read: steps times rows times context."""
    epoch: int | None
    """Passes over the data that were begun."""
    parameters: int | None
    flops: float | None
    """FLOPs of matrix products, forward and backward."""
    peak_memory: int | None
    """Largest resident memory of rank 0, in bytes."""
    gpu_memory: int | None
    """Largest memory on rank 0's GPU, in bytes."""


def run_cost(run: RunData) -> Cost:
    """Add up what a run's folder says about its cost."""
    steps = max(run.metrics.last_step, *run.checkpoint_steps, 0)
    ids = steps * bytes_per_step(run.config)
    seconds = _session_seconds(run.sessions)
    is_estimated = seconds is None
    if seconds is None:
        seconds = _summed_seconds(run)
    model = _model(run.config)
    epochs = run.metrics.train.get("epoch")
    peaks = [s.get("peak_memory") or {} for s in run.sessions]
    return Cost(
        steps=steps,
        planned_steps=run.steps,
        seconds=seconds,
        is_estimated=is_estimated,
        ids=ids,
        epoch=None if epochs is None else int(np.nanmax(epochs)) + 1,
        parameters=None if model is None else sum(c.parameters for c in costs(model)),
        flops=None if model is None else training_flops_per_byte(model) * ids,
        peak_memory=max((p["resident"] for p in peaks if "resident" in p), default=None),
        gpu_memory=max((p["gpu"] for p in peaks if "gpu" in p), default=None),
    )


def _session_seconds(sessions: list[dict[str, Any]]) -> float | None:
    """Seconds of all sessions; None without sessions or if one has no end."""
    seconds = 0.0
    for session in sessions:
        try:
            ended = datetime.fromisoformat(session["ended"])
            seconds += (ended - datetime.fromisoformat(session["started"])).total_seconds()
        except (KeyError, TypeError, ValueError):
            return None
    return seconds if sessions else None


def _summed_seconds(run: RunData) -> float | None:
    """Seconds of the steps, from the throughput of each record."""
    train = run.metrics.train
    if "bytes_per_second" not in train or not bytes_per_step(run.config):
        return None
    steps = np.diff(train["step"], prepend=0)
    payload = bytes_per_step(run.config) - np.nan_to_num(train.get("pad_ids", np.zeros(1)))
    seconds = steps * payload / train["bytes_per_second"]
    return float(seconds[np.isfinite(seconds)].sum())


def _model(config: dict[str, Any]) -> ModelConfig | None:
    """The model's config; None where this version cannot read it."""
    try:
        return ModelConfig.from_dict(section(config, "model"))
    except (ValueError, TypeError, KeyError):
        return None


def is_running(run: RunData) -> bool:
    """Whether the newest session has no end and steps are left: it runs, or was killed."""
    left = run.metrics.last_step < run.steps
    return bool(run.sessions) and run.sessions[-1].get("ended") is None and left
