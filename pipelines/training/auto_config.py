"""Choose the config of a run from its data, its time, and the measured speed of this machine.

`choose` decides in this order: what a row holds, the size of the model, rows of a step, shares of
the sets, steps. Each value has a comment with its reason, which `RUN/config.yaml` shows. The
measurements behind the rules are in docs/log.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bytelm.model.flops import costs, training_flops_per_byte
from bytelm.model.presets import MODERN_PATCH
from bytelm.pipelines.config import RunConfig, plural
from bytelm.pipelines.config_writer import commented_yaml
from bytelm.pipelines.runtime.device import this_device
from bytelm.pipelines.runtime.memory import available_bytes
from bytelm.pipelines.shards.set_summary import size_text
from bytelm.pipelines.training.config_draft import ConfigDraft
from bytelm.pipelines.training.data_choices import (
    SMALLEST_PRESET,
    choose_dropout,
    choose_rows,
    choose_shares,
    useful_passes,
)
from bytelm.pipelines.training.data_profile import DataProfile
from bytelm.pipelines.training.memory import checkpoint_bytes, memory_by_zero_stage
from bytelm.pipelines.training.pace import EVALUATIONS, LEAST_STEPS, TimeBudget, evaluation_interval
from bytelm.pipelines.training.step_speed import StepSpeed

Measure = Callable[[RunConfig, float], StepSpeed]
"""Measures the speed of a config for about so many seconds."""
LITTLE_SHARE = 0.1
"""Share of a modality in the bytes of a set below which it is said."""

# --- size ---
SIZES = (
    (SMALLEST_PRESET, 0.0, 0.0),
    ("modern-hour", 1.5e14, 1e7),
    ("modern-16m", 2e15, 1e8),
    ("modern-64m", 4e16, 1e9),
    ("modern-250m", 6e17, 1e10),
    ("modern-1b", 1e19, 1e11),
)
"""Presets, and the FLOPs of a run and the bytes of its data from which on each is better than the
one before it. The second was measured; the others follow parameters ~ sqrt(FLOPs)."""
SIZE_KEYS = ("model.preset", "model.stages", "model.patch_sizes")
"""Keys with which `--set` gives the size of the model."""
BATCH_KEYS = ("train.micro_batch", "train.global_batch")
"""Keys with which `--set` gives the rows of a step."""
MEMORY_SHARE = 0.8
"""Share of the free memory that a run may need."""
LOCAL_CHUNK = 128
"""Patches whose lower stages are computed at once where memory is short."""

# --- time ---
MEASURED_SHARE, MEASURED_SECONDS = 0.01, 2.0
"""Time of one measurement: a share of the run's, at most so many seconds."""
START_SECONDS = 6.0
"""Measured time from the choice to the first step: DeepSpeed, the loader, and slow first steps."""
CHECKPOINT_SECONDS, CHECKPOINT_RATE = 0.5, 2e8
"""Time of a checkpoint: a part that does not depend on its size, and bytes a second."""
WARMUP_SHARE = 0.06
EVALUATION_SHARE = 0.005
"""Share of the time that one evaluation may take."""
MAX_EVALUATION_ROWS = 64
SAMPLES_SHARE, SAMPLES_SECONDS = 0.06, 60.0
"""Time for samples at the end: a share of the run's, at most so many seconds."""
CHECKPOINT_INTERVAL = 600.0
"""Seconds between two checkpoints."""
ENOUGH_STEPS = 2_000
"""Steps that a run on a GPU keeps when the rows of a step are raised."""
MAX_MICRO_BATCH = 64
FASTER = 1.15
"""Gain in bytes a second for which the rows of a step are doubled."""


@dataclass(frozen=True)
class AutoConfig:
    """A chosen config with its reasons, and what its steps are corrected by."""

    config: RunConfig
    text: str
    """The config as YAML with comments."""
    step_seconds: float
    """Measured time of a step."""
    budget: TimeBudget | None
    """The time that the steps were planned with; None if `--set` gives them."""
    notes: list[str]
    """Lines about the data that a user may want to act on."""

    @property
    def summary(self) -> str:
        """A line about the chosen model, rows and steps, and the notes."""
        model, train = self.config.model, self.config.train
        size = sum(cost.parameters for cost in costs(model)) / 1e6
        line = (
            f"{size:.1f}M parameters, rows of {model.context:,} bytes, "
            f"about {plural(train.steps, 'step')} of {self.step_seconds:.2g} s"
        )
        return "\n".join([line, *self.notes])


def choose(
    paths: Sequence[str],
    seconds: float,
    started: float,
    overrides: Sequence[str],
    processes: int,
    measure: Measure,
) -> AutoConfig:
    """Choose the config of a run.

    Args:
        paths: folders or URLs of the sets.
        seconds: the time from `started`, a value of `time.monotonic()`, to the command's end.
        overrides: `section.key=value` texts, which win over what is chosen.
        processes: ranks of the run.
        measure: measures the speed of a config in one process.
    Raises:
        ValueError: for a mistake in the sets or overrides, or memory that suffices for no model.
    """
    draft = ConfigDraft(DataProfile.of(paths, MODERN_PATCH), overrides, seconds, processes)
    choose_rows(draft)
    speed = _choose_model(draft, measure)
    if this_device().type == "cuda":
        speed = _choose_batch(draft, speed, measure)
    choose_shares(draft, _run_bytes(draft, speed))
    choose_dropout(draft, _run_bytes(draft, speed))
    budget = _choose_steps(draft, speed, started)
    return AutoConfig(
        config=draft.config(),
        text=_text(draft, speed),
        step_seconds=speed.step,
        budget=None if draft.is_given("train.steps") else budget,
        notes=_notes(draft, budget),
    )


# --- size and batch ---


def _choose_model(draft: ConfigDraft, measure: Measure) -> StepSpeed:
    """Choose the preset, the largest one that time and data are enough for; returns its speed."""
    _make_it_fit(draft)
    speed = measure(draft.config(), _measured_seconds(draft))
    chosen = SMALLEST_PRESET
    for name, least_flops, least_bytes in SIZES[1:]:
        flops = draft.seconds / speed.step * _step_flops(draft.config())
        if flops < least_flops or draft.data.size < least_bytes or draft.is_given(*SIZE_KEYS):
            break
        draft.put("model", "preset", name, "")
        if not _fits(draft.config(), draft.processes):
            break
        chosen = name
        speed = measure(draft.config(), _measured_seconds(draft))
    flops = draft.seconds / speed.step * _step_flops(draft.config())
    draft.put(
        "model",
        "preset",
        chosen,
        f"The largest preset that pays at {flops:.1e} FLOPs, this machine's in the time, and "
        f"{size_text(draft.data.size)} of data.",
    )
    return speed


def _choose_batch(draft: ConfigDraft, speed: StepSpeed, measure: Measure) -> StepSpeed:
    """Double the rows of a step on a GPU while that trains on more bytes a second."""
    rows = 1
    while 2 * rows <= MAX_MICRO_BATCH and not draft.is_given(*BATCH_KEYS):
        _put_batch(draft, 2 * rows)
        try:
            larger = measure(draft.config(), _measured_seconds(draft))
        except torch.OutOfMemoryError:
            break
        is_faster = larger.step * FASTER < 2 * speed.step
        if not is_faster or draft.seconds / larger.step < ENOUGH_STEPS:
            break
        rows, speed = 2 * rows, larger
    _put_batch(draft, rows)
    return speed


def _put_batch(draft: ConfigDraft, rows: int) -> None:
    draft.put(
        "train",
        "micro_batch",
        rows,
        f"Rows of a process at once: more are not faster, or leave fewer than {ENOUGH_STEPS:,} "
        "steps.",
    )
    draft.put("train", "global_batch", rows * draft.processes, "Rows of a step of all processes.")


def _make_it_fit(draft: ConfigDraft) -> None:
    """Save memory where the smallest model does not fit; ValueError where that is not enough."""
    if _fits(draft.config(), draft.processes):
        return
    for key, value in (("activation_checkpointing", True), ("local_chunk", LOCAL_CHUNK)):
        draft.put("model", key, value, "Saves memory, of which this machine has little free.")
    if not _fits(draft.config(), draft.processes):
        needed = memory_by_zero_stage(draft.config(), draft.processes)[1].total
        raise ValueError(
            f"{plural(draft.processes, 'process', 'processes')} of {needed / 1e9:.1f} GB each do "
            f"not fit the {available_bytes() / 1e9:.1f} GB of memory that are free: end other "
            "programs, use fewer processes, or --set model.context=2048"
        )


def _fits(config: RunConfig, processes: int) -> bool:
    """Whether the processes of this machine, or of each of its GPUs, have enough memory."""
    needed = memory_by_zero_stage(config, processes)[1].total
    if this_device().type == "cpu":
        needed *= processes
    return needed <= MEMORY_SHARE * available_bytes()


def _step_flops(config: RunConfig) -> float:
    ids = config.train.global_batch * config.model.context
    return training_flops_per_byte(config.model) * ids


def _measured_seconds(draft: ConfigDraft) -> float:
    return min(MEASURED_SECONDS, MEASURED_SHARE * draft.seconds)


def _run_bytes(draft: ConfigDraft, speed: StepSpeed) -> float:
    """Bytes that the run trains on, about."""
    config = draft.config()
    return draft.seconds / speed.step * config.train.global_batch * config.model.context


# --- steps ---


def _most_steps(draft: ConfigDraft) -> int:
    """Steps after which the data are only learned by heart."""
    config = draft.config()
    step_bytes = config.train.global_batch * config.model.context
    return max(
        LEAST_STEPS, math.ceil(useful_passes(draft.data.size) * draft.data.size / step_bytes)
    )


def _small_data(draft: ConfigDraft) -> str:
    return (
        f"The data are small, {size_text(draft.data.size)}: more than "
        f"{useful_passes(draft.data.size):.1f} passes over them would be learned by heart, so the "
        "run ends before its time."
    )


def _choose_steps(draft: ConfigDraft, speed: StepSpeed, started: float) -> TimeBudget:
    """Choose the steps, and what is done between them."""
    rows = _evaluation_rows(draft, speed)
    checkpoint_every = max(1, round(CHECKPOINT_INTERVAL / speed.step))
    outside = EVALUATIONS * sum(rows) * speed.scored_row + (
        1 + draft.seconds // CHECKPOINT_INTERVAL
    ) * _checkpoint_seconds(draft.config())
    samples = min(SAMPLES_SECONDS, SAMPLES_SHARE * draft.seconds)
    most = _most_steps(draft)
    budget = TimeBudget(started, draft.seconds, outside, samples, speed.step, most)
    steps = budget.steps(speed.step, 0, time.monotonic() + START_SECONDS)
    reason = (
        f"As many as end within {_minutes(draft.seconds)}, at {speed.step:.3g} s a step and "
        f"{outside:.0f} s for evaluations and checkpoints, {samples:.0f} s for samples."
    )
    if steps == most:
        reason = _small_data(draft)
    draft.put("train", "steps", steps, reason)
    steps = draft.config().train.steps  # those of --set, if it gives them
    warmup = max(round(WARMUP_SHARE * steps), min(LEAST_STEPS, steps // 4))
    draft.put("optimizer", "warmup_steps", warmup, f"{WARMUP_SHARE:.0%} of the steps.")
    draft.put("train", "eval_every", evaluation_interval(steps), f"{EVALUATIONS} in all.")
    draft.put(
        "train",
        "eval_rows",
        max(rows, default=1),
        f"Of each set; an evaluation takes about {EVALUATION_SHARE:.1%} of the time.",
    )
    draft.put("train", "sample_every", steps, "Drawn once, after the last step.")
    draft.put(
        "train",
        "checkpoint_every",
        checkpoint_every,
        f"One every {_minutes(CHECKPOINT_INTERVAL)}; the last step writes one too.",
    )
    return budget


def _evaluation_rows(draft: ConfigDraft, speed: StepSpeed) -> list[int]:
    """Rows of each set's `val` that an evaluation scores."""
    context = draft.config().model.context
    present = [one.val_bytes // context + 1 for one in draft.data.sets if one.val_documents]
    affordable = EVALUATION_SHARE * draft.seconds / speed.scored_row / max(1, len(present))
    most = int(min(MAX_EVALUATION_ROWS, max(2, affordable)))
    return [min(rows, most) for rows in present]


def _checkpoint_seconds(config: RunConfig) -> float:
    return CHECKPOINT_SECONDS + checkpoint_bytes(config) / CHECKPOINT_RATE


# --- what is said ---


def _notes(draft: ConfigDraft, budget: TimeBudget) -> list[str]:
    """Lines about small data, and about modalities that a mixed set has little of."""
    steps = draft.config().train.steps
    lines = [_small_data(draft)] if steps == budget.most_steps else []
    for one in draft.data.sets:
        for modality, size in one.bytes.items():
            if size < LITTLE_SHARE * one.size:
                lines.append(
                    f"{modality} is {size / one.size:.1%} of the bytes of {one.path}, and so of "
                    "what is learned: for an equal share, prepare each kind of files as a set of "
                    "its own and name all of them with --data"
                )
    return lines


def _text(draft: ConfigDraft, speed: StepSpeed) -> str:
    """The config with its reasons."""
    config = draft.config()
    rate = config.train.global_batch * config.model.context / speed.step
    sets = " ".join(one.path for one in draft.data.sets)
    head = (
        f"Chosen by bytelm train --data {sets}\n"
        f"for {_minutes(draft.seconds)} at {rate / 1e3:,.1f} kB/s, the measured speed.\n"
        "bytelm train CONFIG --out RUN takes the same steps again."
    )
    given = {text.partition("=")[0]: "Given by --set." for text in draft.overrides}
    return commented_yaml(draft.merged(), {**draft.comments, **given}, head)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.3g} minutes" if seconds != 60 else "1 minute"
