"""Differences between a run's saved config and the one that it is resumed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bytelm.pipelines.checkpoints.run_folder import saved_config
from bytelm.pipelines.config import RunConfig

UNREPORTED = frozenset(
    {
        *("train.log_every", "train.eval_every", "train.eval_rows", "train.rank_timeout"),
        *("train.checkpoint_every", "train.keep_last", "train.keep_every"),
        *("train.async_checkpoints", "train.checkpoint_url"),
        *("train.sample_every", "trackers"),
        *("data.workers", "data.cache_folder", "data.cache_gb"),
    }
)
"""Keys that change no weight; a change of any other key is reported."""


UNTRAINED = "model.output_mixing"
"""The key of the model that no weight depends on: training does without it."""


def check_same_model(run: Path, config: RunConfig) -> None:
    """Check that a checkpoint's weights and optimizer state fit the config.

    Raises ValueError for changes of `optimizer.name` and of `model`, but for `output_mixing`.
    """
    refused = [
        f"{key} was {before} and is {now}"
        for key, before, now in _changes(run, config)
        if (key.startswith("model.") and key != UNTRAINED) or key == "optimizer.name"
    ]
    if refused:
        raise ValueError(
            f"{'; '.join(refused)}: the checkpoints of {run} were made by what it was; resume with "
            "that, or train a new run in another --out"
        )


def change_lines(run: Path, config: RunConfig, step: int) -> list[str]:
    """A line for each changed key that alters the steps after `step`."""
    return [
        f"{key} was {before} and is {now} from step {step + 1} on"
        for key, before, now in _changes(run, config)
        if key not in UNREPORTED
    ]


def _changes(run: Path, config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Key, value of the saved config and value now. A version before a key has no value of it."""
    before, now = dict(_flat(saved_config(run) or {})), dict(_flat(config.to_dict()))
    for key, value in now.items():
        if key in before and before[key] != value:
            yield key, before[key], value


def _flat(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, as JSON holds them: `data.sets[0].path`."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _flat(value, f"{key}.{name}" if key else name)
    elif isinstance(values, list | tuple) and any(isinstance(v, Mapping) for v in values):
        for number, value in enumerate(values):
            yield from _flat(value, f"{key}[{number}]")
    else:
        yield key, list(values) if isinstance(values, tuple) else values
