"""A run's config: what `bytelm train CONFIG` reads, checked before anything starts.

CONFIG is YAML (or JSON) with the sections of `RunConfig`. `model` names a preset, or a preset
and what differs from it, or all of a `ModelConfig`:

    model: {preset: modern-demo, context: 8192}
    data: {sets: [{path: sets/text}, {path: sets/image}]}
    train: {steps: 1000}
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from bytelm.model.config import ModelConfig
from bytelm.model.presets import preset
from bytelm.pipelines.shards.reader import ShardSet, open_set
from bytelm.pipelines.storage.cache import CACHE_FOLDER, CACHE_GB


@dataclass(frozen=True)
class SetConfig:
    """One shard set of a mixture."""

    path: str
    """Folder or URL of the set."""
    weight: float | None = None
    """Share of the payload bytes, relative to the other sets; give it to all sets or to none.
    None takes each set at its own size."""
    max_repeats: float = 1.0
    """Passes over the set after which it counts as exhausted."""


@dataclass(frozen=True)
class ViewsConfig:
    """The view that turns each modality's samples into payload bytes."""

    text: Literal["utf8", "file"] = "utf8"
    image: Literal["raster", "planar", "patch", "file"] = "raster"
    audio: Literal["s16le", "s16be", "u8", "mulaw", "file"] = "s16be"


@dataclass(frozen=True)
class DataConfig:
    """What the rows are made of."""

    sets: tuple[SetConfig, ...]
    views: ViewsConfig = field(default_factory=ViewsConfig)
    packing: Literal["best_fit", "concat_then_split"] = "best_fit"
    """`best_fit` cuts only documents longer than a row; `concat_then_split` fills every row and
    cuts at its end."""
    pair_order: Literal["stored", "drawn"] = "stored"
    """Order of a pair's segments: as stored, or drawn anew in each epoch."""
    shuffle_window: int = 16
    """Shards whose rows are permuted together."""
    on_exhausted: Literal["repeat", "stop", "error"] = "repeat"
    """What happens when a set has been passed through `max_repeats` times: `repeat` goes on with
    another pass, `stop` ends the run there, `error` refuses a run that would come to it."""
    damage: Literal["raise", "mask"] = "raise"
    """What a damaged document does: `raise` stops the run; `mask` leaves PAD in its place, counts
    and names it, and stops the run at `max_bad_share`."""
    max_bad_share: float = 0.001
    """Masked bytes, as a share of an epoch's payload bytes, above which a run stops."""
    cache_folder: str = CACHE_FOLDER
    """Where shards of remote sets are kept."""
    cache_gb: float = CACHE_GB
    """What the cache may hold, in 10^9 bytes."""
    workers: int = 1
    """Processes that read rows, for each rank; 0 reads in the trainer itself."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Warm-up, then linear decay to 0. The paper's own is AdamW with `lr` 2e-4."""

    name: Literal["muon", "adamw"] = "muon"
    """`muon` trains the hidden matrices by Muon and the rest by AdamW."""
    lr: float | None = None
    """AdamW's, at the end of the warm-up; None is 2e-2 beside Muon and 2e-3 for AdamW alone."""
    muon_lr: float = 0.02
    """Muon's, at the end of the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    """Largest norm of the gradient; .inf clips nothing."""
    warmup_steps: int = 500

    @property
    def adamw_lr(self) -> float:
        """`lr`, or what stands for None: tables, heads and vectors want more than matrices do."""
        if self.lr is not None:
            return self.lr
        return 2e-2 if self.name == "muon" else 2e-3

    def wrong(self) -> list[str]:
        """Why nothing could be trained so, by key."""
        wrong = []
        for name, value, hint in (
            ("lr", self.adamw_lr, ""),
            ("muon_lr", self.muon_lr, ""),
            ("max_grad_norm", self.max_grad_norm, " (.inf clips nothing)"),
        ):
            if not value > 0:
                wrong.append(f"optimizer.{name} is {value}, and must be above 0{hint}")
        if not all(0 <= beta < 1 for beta in self.betas):
            wrong.append(f"optimizer.betas are {self.betas}, and must be at least 0 and below 1")
        if not self.weight_decay >= 0:
            wrong.append(f"optimizer.weight_decay is {self.weight_decay}, and must be at least 0")
        return wrong


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and how."""

    steps: int
    global_batch: int = 1
    """Rows of one optimizer step, over all ranks."""
    micro_batch: int = 1
    """Rows of one forward and backward on one rank, or on those that share them."""
    sequence_parallel_size: int = 1
    """Ranks that share each row, for rows that are too long for one."""
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes under autocast; weights, gradients and optimizer stay fp32. `auto` is bf16
    where the device multiplies it by instructions of its own, and else fp32."""
    deepspeed: str = "zero1"
    """A case of `ds_configs` (zero0 to zero3, zero2_offload, zero3_offload), or a JSON file."""
    log_every: int = 1
    """Steps between lines of metrics."""
    eval_every: int = 0
    """Steps between evaluations on `val`; 0 evaluates only at the end."""
    eval_rows: int = 64
    """Rows of each set's `val` that an evaluation during training scores."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step always writes one."""
    keep_last: int = 3
    """Newest checkpoints that are kept; older ones are removed once a newer one is whole."""
    keep_every: int = 0
    """Checkpoints of every so many steps are kept for good; 0 keeps none beside the newest."""
    rank_timeout: float = 600.0
    """Seconds that a rank waits for the others before the run ends."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on; the resolved one is saved in the run's folder."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        wrong = []
        for name, value, least in (
            ("train.steps", self.train.steps, 1),
            ("train.global_batch", self.train.global_batch, 1),
            ("train.micro_batch", self.train.micro_batch, 1),
            ("train.sequence_parallel_size", self.train.sequence_parallel_size, 1),
            ("train.log_every", self.train.log_every, 1),
            ("train.eval_every", self.train.eval_every, 0),
            ("train.eval_rows", self.train.eval_rows, 1),
            ("train.checkpoint_every", self.train.checkpoint_every, 1),
            ("train.keep_last", self.train.keep_last, 1),
            ("train.keep_every", self.train.keep_every, 0),
            ("train.rank_timeout", self.train.rank_timeout, 1),
            ("data.shuffle_window", self.data.shuffle_window, 1),
            ("data.workers", self.data.workers, 0),
            ("optimizer.warmup_steps", self.optimizer.warmup_steps, 0),
        ):
            if value < least:
                wrong.append(f"{name} is {value}, and must be at least {least}")
        wrong += self.optimizer.wrong()
        wrong += self._wrong_with_sharing()
        if wrong:
            raise ValueError("; ".join(wrong))
        if not 0 <= self.data.max_bad_share <= 1:
            raise ValueError(f"data.max_bad_share is {self.data.max_bad_share}, and must be 0 to 1")
        if not self.data.sets:
            raise ValueError("data.sets is empty: name at least one set made by `bytelm prepare`")

    def _wrong_with_sharing(self) -> list[str]:
        """Why rows of the model cannot be shared by `train.sequence_parallel_size`."""
        ranks, heads = self.train.sequence_parallel_size, self.model.stages[0].heads
        if ranks <= 1:
            return []
        wrong = []
        patches = self.train.micro_batch * self.model.context // self.model.patch
        if heads % ranks:
            wrong.append(
                f"train.sequence_parallel_size {ranks} does not divide stage 0's {heads} heads"
            )
        if patches % ranks:
            wrong.append(
                f"train.sequence_parallel_size {ranks} does not divide a micro batch's "
                f"{patches} patches"
            )
        if patches // ranks < self.model.reach:
            wrong.append(
                f"train.sequence_parallel_size {ranks} leaves {patches // ranks} patches of a "
                f"micro batch to a rank, and cross_patch_attention needs {self.model.reach}"
            )
        return wrong

    def accumulation(self, ranks: int) -> int:
        """Micro batches of a step on each of so many ranks.

        Raises ValueError, with numbers that would do, where they do not share a global batch.
        """
        rows, micro = self.train.global_batch, self.train.micro_batch
        shared = self.train.sequence_parallel_size
        if ranks % shared:
            raise ValueError(
                f"train.sequence_parallel_size {shared} does not divide {ranks} processes: "
                "use a multiple"
            )
        groups = ranks // shared
        once = micro * groups
        of_each = "process" if shared == 1 else "group"
        who = "processes" if shared == 1 else f"groups of {shared} processes"
        parts = ((groups, who), (micro, "rows of a micro batch"))
        uneven = [f"{number} {what}" for number, what in parts if rows % number]
        wrong = f"{' and '.join(uneven)} do not divide it" if uneven else ""
        if not wrong and rows % once:
            wrong = f"{rows // groups} rows a {of_each} are not cut into micro batches of {micro}"
        if wrong:
            near = [n for n in (rows // once * once, rows // once * once + once) if n]
            raise ValueError(
                f"train.global_batch is {rows}: {wrong}; use {groups} {who} x "
                f"micro batches of {micro} x accumulation, {' or '.join(map(str, near))} rows"
            )
        return rows // once

    def open_set(self, number: int) -> ShardSet:
        """The shard set of an entry of `data.sets`."""
        return open_set(self.data.sets[number].path, self.data.cache_folder, self.data.cache_gb)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `RunConfig` reads them back."""
        return {**dataclasses.asdict(self), "model": self.model.to_dict()}


def load_config(path: Path, overrides: list[str]) -> RunConfig:
    """Read and check a config file.

    Args:
        overrides: `section.key=value`, each replacing a value of the file.
    Raises:
        ValueError: for a file that is missing or no mapping, an unknown key (naming the nearest
            known one), a missing key, or a value of the wrong kind.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config {path} must be a mapping with model, data and train")
    for override in overrides:
        _override(values, override)
    return config_from_dict(values)


def config_from_dict(values: dict[str, Any]) -> RunConfig:
    """The checked config of plain values; raises ValueError as `load_config` does."""
    values = {**values, "model": _resolve_model(values.get("model"))}
    _check_keys(RunConfig, values, "")
    return _parse(values)


def _parse(values: dict[str, Any]) -> RunConfig:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--run", type=RunConfig)
    try:
        return parser.instantiate(parser.parse_object({"run": values})).run
    except ArgumentError as error:
        message = " ".join(str(error).split())
        raise ValueError(message.replace('Parser key "run.', 'config key "', 1)) from error


def _resolve_model(model: Any) -> Any:
    """The model section with its preset filled in."""
    if isinstance(model, str):
        return preset(model).to_dict()
    if isinstance(model, dict) and "preset" in model:
        given = {key: value for key, value in model.items() if key != "preset"}
        return {**preset(model["preset"]).to_dict(), **given}
    return model


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ValueError(f"--set takes section.key=value, not {override!r}")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if section == "model" and isinstance(inner, str):
            inner = values["model"] = {"preset": inner}
        if not isinstance(inner, dict):
            raise ValueError(f"--set {override}: {section} is no section of the config")
        values = inner
    values[last] = yaml.safe_load(text)


def _check_keys(kind: Any, values: Any, path: str) -> None:
    """ValueError for a key that a dataclass does not have or lacks, at any depth."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(values, list | tuple):
        for i, value in enumerate(values):
            _check_keys(arguments[0], value, f"{path}[{i}]")
        return
    if not dataclasses.is_dataclass(kind):
        return
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'the config'} must be a mapping, not {values!r}")
    types = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in values.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.0)
            raise ValueError(f"unknown key {here}: did you mean {near[0]}?")
        _check_keys(types[key], value, here)
    for name, f in fields.items():
        optional = (
            f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        )
        if name not in values and not optional:
            raise ValueError(f"{path + '.' if path else ''}{name} is missing from the config")
