"""Choose the config of a run from its data, its time, and the measured speed of this machine.

`choose` decides in this order: what a row holds, the size of the model, rows of a step, shares of
the sets, steps. Each value has a comment with its reason, which `RUN/config.yaml` shows. The
measurements behind the rules are in docs/log.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bytelm.model.flops import costs, training_flops_per_byte
from bytelm.model.presets import MODERN_PATCH
from bytelm.pipelines.config import RunConfig, config_from_dict, override_value, plural
from bytelm.pipelines.config_writer import commented_yaml
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.runtime.device import this_device
from bytelm.pipelines.runtime.memory import available_bytes
from bytelm.pipelines.shards.set_summary import size_text
from bytelm.pipelines.training.data_profile import DataProfile
from bytelm.pipelines.training.memory import checkpoint_bytes, memory_by_zero_stage
from bytelm.pipelines.training.pace import EVALUATIONS, LEAST_STEPS, TimeBudget, evaluation_interval
from bytelm.pipelines.training.preflight import plan_config
from bytelm.pipelines.training.step_speed import StepSpeed

Measure = Callable[[RunConfig, float], StepSpeed]
"""Measures the speed of a config for about so many seconds."""

# --- rows ---
ROW_UNIT = 256
SHORTEST_ROW, USUAL_ROW, LONGEST_ROW = 2_048, 8_192, 16_384
"""Ids in a row: at least, where documents are longer than a row, and so that they fit."""
FITTING_SHARE = 0.95
"""Share of the documents that a row is to hold whole."""
FITTING_IMAGES = 0.5
"""Share of the documents with an image that are within LONGEST_ROW, so that rows are made for
them."""
MAX_PADDING = 0.15
"""Share of padding from which on documents are split at the end of a row."""

# --- size ---
SIZES = (
    ("modern-demo", 0.0, 0.0),
    ("modern-hour", 1.5e14, 1e7),
    ("modern-16m", 2e15, 1e8),
    ("modern-64m", 4e16, 1e9),
    ("modern-250m", 6e17, 1e10),
    ("modern-1b", 1e19, 1e11),
)
"""Presets, and the FLOPs of a run and the bytes of its data from which on each is better than the
one before it. The second was measured; the others follow parameters ~ sqrt(FLOPs)."""
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

# --- data ---
PASSES, PASSES_PER_MB = 4.0, 5.0
"""Passes over data that are useful: at least, and further ones for each 10^6 bytes."""
DROPOUT = 0.2
"""Rate for data that are repeated often: over 100 kB of text it gained 0.25 bits in 5 passes."""
LITTLE_SHARE = 0.1
"""Share of a modality in the bytes of a set below which it is said."""
SMALL_DATA = 1e6
"""Bytes below which rows are short, so that there are enough steps."""


@dataclass(frozen=True)
class AutoConfig:
    """A chosen config with its reasons, and the time budget that its steps were planned with."""

    config: RunConfig
    text: str
    """The config as YAML with comments."""
    budget: TimeBudget

    notes: list[str]
    """Lines about the data that a user may want to act on."""

    @property
    def summary(self) -> str:
        """What was chosen, in a line, and the notes."""
        model, train = self.config.model, self.config.train
        size = sum(cost.parameters for cost in costs(model)) / 1e6
        line = (
            f"{size:.1f}M parameters, rows of {model.context:,} bytes, "
            f"about {plural(train.steps, 'step')} of {self.budget.step_seconds:.2g} s"
        )
        return "\n".join([line, *self.notes])


@dataclass
class _Draft:
    """Values and comments of the config while it is chosen."""

    data: DataProfile
    overrides: Sequence[str]
    seconds: float
    processes: int
    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)

    def put(self, section: str, key: str, value: Any, comment: str) -> None:
        """Set a value and its reason."""
        self.values.setdefault(section, {})[key] = value
        self.comments[f"{section}.{key}"] = comment

    def is_given(self, key: str) -> bool:
        """Whether `--set` gives a `section.key`, or the whole of a `section`."""
        return any(text.startswith((f"{key}=", f"{key}.")) for text in self.overrides)

    def merged(self) -> dict[str, Any]:
        """The values with those of `--set`."""
        values = {name: dict(section) for name, section in self.values.items()}
        for override in self.overrides:
            override_value(values, override)
        return values

    def config(self) -> RunConfig:
        """The config with the values of `--set`, checked."""
        return config_from_dict(self.merged())


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
    draft = _Draft(DataProfile.of(paths, MODERN_PATCH), overrides, seconds, processes)
    _choose_rows(draft)
    speed = _choose_model(draft, measure)
    if this_device().type == "cuda":
        speed = _choose_batch(draft, speed, measure)
    _choose_shares(draft, _run_bytes(draft, speed))
    _choose_dropout(draft, _run_bytes(draft, speed))
    budget = _choose_steps(draft, speed, started)
    return AutoConfig(draft.config(), _text(draft, speed), budget, _notes(draft, budget))


def choose_data(paths: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose what depends on the sets alone: rows, packing, and weights for a short run.

    Returns:
        sections of values, and comments by `section.key`.
    Raises:
        ValueError: if a path is no set, or one without documents in `train`.
    """
    draft = _Draft(DataProfile.of(paths, MODERN_PATCH), [], 0.0, 1)
    _choose_rows(draft)
    _choose_shares(draft, 1.0)
    return draft.values, draft.comments


# --- rows ---


def _choose_rows(draft: _Draft) -> None:
    """Choose the ids of a row and the packing; the rest of the config is provisional."""
    data = draft.data
    fits = data.pictured <= LONGEST_ROW
    if fits.size and fits.mean() >= FITTING_IMAGES:
        row = float(np.quantile(data.pictured[fits], FITTING_SHARE))
        held = FITTING_SHARE * float(fits.mean())
        reason = f"hold {held:.0%} of the documents with an image whole"
    elif data.size < SMALL_DATA:
        row, reason = SHORTEST_ROW, "leave enough steps for small data"
    elif (row := float(np.quantile(data.lengths, FITTING_SHARE))) <= USUAL_ROW:
        reason = f"hold {FITTING_SHARE:.0%} of the documents whole"
    else:
        row, reason = USUAL_ROW, "are usual; documents are longer and are split"
    context = max(SHORTEST_ROW, math.ceil(row / ROW_UNIT) * ROW_UNIT)
    draft.put("model", "preset", SIZES[0][0], "")
    draft.put("model", "context", context, f"Bytes and framing of a row: so many {reason}.")
    draft.put("data", "sets", [{"path": one.path} for one in data.sets], "")
    draft.put("data", "packing", "best_fit", "")
    draft.put("train", "steps", LEAST_STEPS, "")
    draft.put("train", "global_batch", draft.processes, "")
    padding = _padding_share(draft.config())
    packing = "concat_then_split" if padding > MAX_PADDING else "best_fit"
    draft.put(
        "data",
        "packing",
        packing,
        f"With best_fit, which splits only documents longer than a row, {padding:.0%} of the rows "
        "are framing and padding.",
    )


def _padding_share(config: RunConfig) -> float:
    """Share of framing and padding in the rows of all sets."""
    sources = [Source(config.open_set(n), "train") for n in range(len(config.data.sets))]
    tables = Plan(sources, plan_config(config)).tables
    ids = config.model.context * sum(int(table.rows.sum()) for table in tables)
    return 1 - sum(int(table.cost.sum()) for table in tables) / ids


# --- size and batch ---


def _choose_model(draft: _Draft, measure: Measure) -> StepSpeed:
    """Choose the preset, the largest one that time and data are enough for; returns its speed."""
    _make_it_fit(draft)
    speed = measure(draft.config(), _measured_seconds(draft))
    chosen = SIZES[0][0]
    for name, least_flops, least_bytes in SIZES[1:]:
        flops = draft.seconds / speed.step * _step_flops(draft.config())
        if draft.is_given("model") or flops < least_flops or draft.data.size < least_bytes:
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


def _choose_batch(draft: _Draft, speed: StepSpeed, measure: Measure) -> StepSpeed:
    """Double the rows of a step on a GPU while that trains on more bytes a second."""
    rows = 1
    while not draft.is_given("train") and 2 * rows <= MAX_MICRO_BATCH:
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


def _put_batch(draft: _Draft, rows: int) -> None:
    draft.put(
        "train",
        "micro_batch",
        rows,
        f"Rows of a process at once: more are not faster, or leave fewer than {ENOUGH_STEPS:,} "
        "steps.",
    )
    draft.put("train", "global_batch", rows * draft.processes, "Rows of a step of all processes.")


def _make_it_fit(draft: _Draft) -> None:
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


def _measured_seconds(draft: _Draft) -> float:
    return min(MEASURED_SECONDS, MEASURED_SHARE * draft.seconds)


# --- data ---


def _run_bytes(draft: _Draft, speed: StepSpeed) -> float:
    """Bytes that the run trains on, about."""
    config = draft.config()
    return draft.seconds / speed.step * config.train.global_batch * config.model.context


def useful_passes(size: float) -> float:
    """Passes over data of so many bytes after which a model only learns them by heart.

    Measured with `modern-demo`: 4 over 100 kB of text. More data leave less room in the model for
    each byte.
    """
    return PASSES + PASSES_PER_MB * size / 1e6


def _choose_dropout(draft: _Draft, run_bytes: float) -> None:
    """Choose dropout where the data are repeated often."""
    passes = run_bytes / draft.data.size
    if passes > useful_passes(draft.data.size) / 2:
        draft.put(
            "model",
            "dropout",
            DROPOUT,
            "The data are small for the time, and are repeated often.",
        )


def _choose_shares(draft: _Draft, run_bytes: float) -> None:
    """Choose the weights of several sets: equal bytes of each modality, within MAX_PASSES."""
    sets = draft.data.sets
    modalities = list(dict.fromkeys(one.main_modality for one in sets))
    if len(modalities) == 1 or draft.is_given("data.sets"):
        return
    sizes = {m: sum(one.size for one in sets if one.main_modality == m) for m in modalities}
    shares = equal_shares({m: useful_passes(size) * size / run_bytes for m, size in sizes.items()})
    weighted = [
        {"path": one.path, "weight": round(scale * one.size / sizes[one.main_modality], 3)}
        for one in sets
        for scale in [len(modalities) * shares[one.main_modality]]
    ]
    draft.put(
        "data",
        "sets",
        weighted,
        "Each modality has an equal share of the bytes, unless it would be learned by heart "
        "before the others; inside a modality, sets count by their size.",
    )


def equal_shares(limits: Mapping[str, float]) -> dict[str, float]:
    """Divide 1 equally, but for limits; where their sum is below 1, in proportion to them."""
    total = sum(limits.values())
    if total <= 1:
        return {name: limit / total for name, limit in limits.items()}
    shares: dict[str, float] = {}
    for name in sorted(limits, key=lambda name: limits[name]):
        rest = (1 - sum(shares.values())) / (len(limits) - len(shares))
        shares[name] = min(limits[name], rest)
    return shares


# --- steps ---


def _most_steps(draft: _Draft) -> int:
    """Steps after which the data are only learned by heart."""
    config = draft.config()
    step_bytes = config.train.global_batch * config.model.context
    return max(
        LEAST_STEPS, math.ceil(useful_passes(draft.data.size) * draft.data.size / step_bytes)
    )


def _small_data(draft: _Draft) -> str:
    return (
        f"The data are small, {size_text(draft.data.size)}: more than "
        f"{useful_passes(draft.data.size):.1f} passes over them would be learned by heart, so the "
        "run ends before its time."
    )


def _choose_steps(draft: _Draft, speed: StepSpeed, started: float) -> TimeBudget:
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


def _evaluation_rows(draft: _Draft, speed: StepSpeed) -> list[int]:
    """Rows of each set's `val` that an evaluation scores."""
    context = draft.config().model.context
    present = [one.val_bytes // context + 1 for one in draft.data.sets if one.val_documents]
    affordable = EVALUATION_SHARE * draft.seconds / speed.scored_row / max(1, len(present))
    most = int(min(MAX_EVALUATION_ROWS, max(2, affordable)))
    return [min(rows, most) for rows in present]


def _checkpoint_seconds(config: RunConfig) -> float:
    return CHECKPOINT_SECONDS + checkpoint_bytes(config) / CHECKPOINT_RATE


# --- what is said ---


def _notes(draft: _Draft, budget: TimeBudget) -> list[str]:
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


def _text(draft: _Draft, speed: StepSpeed) -> str:
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
