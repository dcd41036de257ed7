"""The config of a run: the sections of the file that `bytelm train` reads, and their checks.

The file is YAML or JSON with the sections of `RunConfig`. `model` is the name of a preset, a
preset with changed fields, or all fields of a `ModelConfig`:

    model: {preset: modern-demo, context: 8192}
    data: {sets: [{path: sets/text}, {path: sets/image}]}
    train: {steps: 1000}
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bytelm.model.config import ModelConfig
from bytelm.model.presets import preset
from bytelm.pipelines.config_file import parse_yaml, read_config_file
from bytelm.pipelines.config_values import build
from bytelm.pipelines.shards.reader import ShardSet, open_set
from bytelm.pipelines.storage.cache import CACHE_FOLDER, CACHE_GB


@dataclass(frozen=True)
class SetConfig:
    """One shard set of a mixture."""

    path: str
    """Folder or URL of the set. A relative path begins at the working directory, not at the config
    file."""
    weight: float | None = None
    """Share of the payload bytes that come from this set, relative to the other weights. Give it
    for all sets or for none; without it, each set counts by its size."""
    max_repeats: float = 1.0
    """Number of passes over the set after which it counts as exhausted."""


@dataclass(frozen=True)
class ViewsConfig:
    """The view of each modality: how its samples become payload bytes."""

    text: Literal["utf8", "file"] = "utf8"
    """`utf8`: the bytes of the text. `file`, in every modality: the bytes of the file as it is."""
    image: Literal["raster", "planar", "patch", "deep", "file"] = "raster"
    """`raster`: lines of pixels, channels interleaved. `planar`: a plane of each channel. `patch`:
    square tiles whose bytes fill one patch of the model. `deep`: as `raster`, two bytes a channel,
    high byte first, for sets prepared with `--keep-depth`."""
    audio: Literal["s16le", "s16be", "u8", "mulaw", "s24be", "file"] = "s16be"
    """`s16be`, `s16le`: 16-bit samples, high or low byte first. `u8`: high bytes plus 128. `mulaw`:
    8-bit mu-law codes. `s24be`: 24-bit samples, high byte first, for sets prepared with
    `--keep-depth`. A view of fewer bits than the sample loses the rest."""


@dataclass(frozen=True)
class DataConfig:
    """The data, and how rows are made of it."""

    sets: tuple[SetConfig, ...]
    """The shard sets of the mixture."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """How each modality's samples are written as bytes."""
    packing: Literal["best_fit", "concat_then_split"] = "best_fit"
    """`best_fit` splits only documents longer than a row; `concat_then_split` fills every row and
    splits documents at its end."""
    pair_order: Literal["stored", "drawn"] = "stored"
    """Order of a pair's segments: as stored, or drawn again in each epoch."""
    shuffle_window: int = 16
    """Number of shards whose rows are shuffled together."""
    on_exhausted: Literal["repeat", "stop", "error"] = "repeat"
    """Action once a set is exhausted: `repeat` takes another pass over it, `stop` ends the run,
    `error` refuses to start a run that would exhaust it."""
    damage: Literal["raise", "mask"] = "raise"
    """Action on a damaged document: `raise` ends the run; `mask` replaces it by PAD, counts and
    logs it, and ends the run above `max_bad_share`."""
    max_bad_share: float = 0.001
    """Largest share of an epoch's payload bytes that may be masked."""
    cache_folder: str = CACHE_FOLDER
    """Folder of the cache for shards of remote sets."""
    cache_gb: float = CACHE_GB
    """Limit of the cache, in 10^9 bytes; .inf sets none."""
    workers: int = 1
    """Processes per rank that read rows; 0 reads them in the rank itself."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer. Learning rates rise linearly, then fall linearly to 0. The paper uses AdamW
    with `lr` 2e-4."""

    name: Literal["muon", "adamw"] = "muon"
    """`muon` trains the hidden matrices with Muon and all other parameters with AdamW."""
    lr: float | None = None
    """AdamW's learning rate after the warm-up; by default 2e-2 beside Muon and 2e-3 alone."""
    muon_lr: float = 0.02
    """Muon's learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's coefficients of the running means of the gradient and of its square."""
    weight_decay: float = 0.1
    """Decoupled weight decay of both optimizers."""
    max_grad_norm: float = 1.0
    """Norm to which larger gradients are clipped; .inf never clips."""
    warmup_steps: int = 500
    """Steps over which the learning rates rise."""

    @property
    def adamw_lr(self) -> float:
        """`lr`, or its default: embeddings, heads and vectors need more than hidden matrices."""
        if self.lr is not None:
            return self.lr
        return 2e-2 if self.name == "muon" else 2e-3

    def problems(self) -> list[str]:
        """List the values with which training is impossible, by key."""
        problems = []
        for name, value, remark in (
            ("lr", self.adamw_lr, " and finite"),
            ("muon_lr", self.muon_lr, " and finite"),
            ("max_grad_norm", self.max_grad_norm, " (.inf never clips)"),
        ):
            if not value > 0 or (value == math.inf and name != "max_grad_norm"):
                problems.append(f"optimizer.{name} is {value}, and must be above 0{remark}")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"optimizer.betas are {self.betas}, and must be at least 0 and below 1")
        if not 0 <= self.weight_decay < math.inf:
            problems.append(
                f"optimizer.weight_decay is {self.weight_decay}, and must be at least 0 and finite"
            )
        if self.warmup_steps < 0:
            problems.append(
                f"optimizer.warmup_steps is {self.warmup_steps}, and must be at least 0"
            )
        return problems


@dataclass(frozen=True)
class NoiseConfig:
    """Mean share of a modality's payload bytes, below 0.5, that is replaced; 0 replaces none."""

    text: float = 0.0
    """Mean share in texts."""
    image: float = 0.0
    """Mean share in images."""
    audio: float = 0.0
    """Mean share in sounds."""

    def problems(self) -> list[str]:
        """List the shares that are out of range, by key."""
        return [
            f"train.noise.{name} is {share}, and must be at least 0, below 0.5"
            for name, share in vars(self).items()
            if not 0 <= share < 0.5
        ]


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, batch sizes, precision, parallelism, evaluation and checkpoints."""

    steps: int
    """Optimizer steps of the run."""
    global_batch: int = 1
    """Rows of an optimizer step, over all ranks."""
    micro_batch: int = 1
    """Rows of one forward and backward pass on a rank, or on a group of ranks that share rows."""
    sequence_parallel_size: int = 1
    """Number of ranks that share each row, for rows too long for one rank."""
    seed: int = 0
    """Seed of the initial weights, the order of rows, and dropout."""
    initial_model: str = ""
    """Model whose weights a new run begins with: a run, an exported model, the name of a bundled
    one, or a URL, of the shape of `model`. Empty draws them."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """Share of the bytes of each modality that the model reads replaced by noise in training, while
    it predicts the true ones: it then keeps better to what stands before where it draws."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` computes under autocast, with weights, gradients and optimizer state in fp32. `auto`
    is `bf16` on a device that has instructions for it, otherwise `fp32`."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model between its attentions with `torch.compile`, for training alone. `auto` is
    `on` on a GPU where the compiler works, otherwise `off`."""
    communication: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers in which gradients are summed over ranks. `auto`: those of linear layers in
    `precision` (at ZeRO 0 in fp32), others in fp32. `fp32`: all in fp32. `bf16`: all in bf16, but
    vectors in fp32 where `precision` is bf16; ZeRO 3 then gathers the weights in the same."""
    deepspeed: str = "zero1"
    """ZeRO stage and offload: a case of `ds_configs` (zero0, zero1, zero2, zero3, zero2_offload,
    zero3_offload), or a JSON file."""
    log_every: int = 1
    """Number of steps between two lines of metrics."""
    eval_every: int = 0
    """Number of steps between two evaluations on `val`; 0 evaluates only after the last step."""
    eval_rows: int = 64
    """Rows of each set's `val` that an evaluation during training scores, at most."""
    sample_every: int = 0
    """Number of steps between two times that samples are drawn into the run's folder; the last step
    draws them too. 0 never draws."""
    checkpoint_every: int = 1000
    """Number of steps between two checkpoints; the last step always writes one."""
    keep_last: int = 3
    """Number of newest checkpoints to keep; older ones are removed after a new one is written."""
    keep_every: int = 0
    """Checkpoints of steps divisible by this are never removed; 0 keeps only the newest."""
    async_checkpoints: bool = True
    """Write checkpoints beside the steps, which wait for a copy in the host's memory only; a rank
    whose copy would take over half of the free memory writes first. `false`: every step waits."""
    checkpoint_url: str = ""
    """Folder of an object store (s3, gs, az, hf or file) to which checkpoints are uploaded beside
    the steps, and from which `--resume` fetches the newest; empty keeps them local."""
    rank_timeout: float = 600.0
    """Seconds that a rank waits for another one, or for a batch of a data worker, before the run
    ends; .inf sets no limit."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. The resolved config is saved in the run's folder."""

    model: ModelConfig
    """A preset's name, a preset and the keys that differ from it, or all keys of a model."""
    data: DataConfig
    """The sets and how their documents become rows."""
    train: TrainConfig
    """Length of the run, batches, precision, evaluations and checkpoints."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Muon or AdamW, and the learning rates."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where metrics and samples go beside the run's own files; `wandb` and `trackio` are extras,
    `pip install 'bytelm[wandb]'`. An empty list is none."""

    def __post_init__(self) -> None:
        problems = [
            *self._out_of_range(),
            *self.optimizer.problems(),
            *self.train.noise.problems(),
            *self._sequence_parallel_problems(),
        ]
        if not 0 <= self.data.max_bad_share <= 1:
            problems.append(f"data.max_bad_share is {self.data.max_bad_share}, and must be 0 to 1")
        if not self.data.cache_gb * 1e9 >= 1:
            problems.append(
                f"data.cache_gb is {self.data.cache_gb}, and must be above 0 (.inf sets no limit)"
            )
        problems += self._set_problems()
        if len(set(self.trackers)) < len(self.trackers):
            problems.append(f"trackers are {', '.join(self.trackers)}: name each of them once")
        if not self.data.sets:
            problems.append("data.sets is empty: name at least one set made by `bytelm prepare`")
        if problems:
            raise ValueError("; ".join(problems))

    def accumulation(self, ranks: int) -> int:
        """Return the number of micro batches per step on each of `ranks` ranks.

        Raises:
            ValueError: if the global batch cannot be divided so, with sizes that can.
        """
        rows, micro = self.train.global_batch, self.train.micro_batch
        group_size = self.train.sequence_parallel_size
        if ranks % group_size:
            raise ValueError(
                f"train.sequence_parallel_size {group_size} does not divide "
                f"{plural(ranks, 'process', 'processes')}: use a multiple"
            )
        groups = ranks // group_size
        unit = micro * groups
        if rows % unit == 0:
            return rows // unit
        group, readers = "process", plural(groups, "process", "processes")
        if group_size > 1:
            group, readers = "group", f"{plural(groups, 'group')} of {group_size} processes"
        not_dividing = [
            text
            for number, text in ((groups, readers), (micro, f"{micro} rows of a micro batch"))
            if rows % number
        ]
        problem = f"{' and '.join(not_dividing)} do not divide it"
        if not not_dividing:
            problem = f"{rows // groups} rows a {group} are not cut into micro batches of {micro}"
        multiples = [n for n in (rows // unit * unit, rows // unit * unit + unit) if n]
        raise ValueError(
            f"train.global_batch is {rows}: {problem}; use {readers} x micro batches of {micro} x "
            f"accumulation, {' or '.join(map(str, multiples))} rows"
        )

    def open_set(self, number: int) -> ShardSet:
        """Open the shard set of an entry of `data.sets`."""
        return open_set(self.data.sets[number].path, self.data.cache_folder, self.data.cache_gb)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `config_from_dict` makes the same config."""
        return {**dataclasses.asdict(self), "model": self.model.to_dict()}

    def _out_of_range(self) -> list[str]:
        problems = []
        for name, value, least in (
            ("train.steps", self.train.steps, 1),
            ("train.global_batch", self.train.global_batch, 1),
            ("train.micro_batch", self.train.micro_batch, 1),
            ("train.sequence_parallel_size", self.train.sequence_parallel_size, 1),
            ("train.log_every", self.train.log_every, 1),
            ("train.eval_every", self.train.eval_every, 0),
            ("train.eval_rows", self.train.eval_rows, 1),
            ("train.sample_every", self.train.sample_every, 0),
            ("train.checkpoint_every", self.train.checkpoint_every, 1),
            ("train.keep_last", self.train.keep_last, 1),
            ("train.keep_every", self.train.keep_every, 0),
            ("train.rank_timeout", self.train.rank_timeout, 1),
            ("data.shuffle_window", self.data.shuffle_window, 1),
            ("data.workers", self.data.workers, 0),
        ):
            if not value >= least:
                problems.append(f"{name} is {value}, and must be at least {least}")
        return problems

    def _set_problems(self) -> list[str]:
        problems = []
        for number, chosen in enumerate(self.data.sets):
            for name, value in (("weight", chosen.weight), ("max_repeats", chosen.max_repeats)):
                if value is not None and not 0 < value < math.inf:
                    problems.append(
                        f"data.sets[{number}].{name} is {value}, and must be above 0 and finite"
                    )
        return problems

    def _sequence_parallel_problems(self) -> list[str]:
        """Why the model's rows cannot be shared by `train.sequence_parallel_size` ranks."""
        ranks, heads = self.train.sequence_parallel_size, self.model.stages[0].heads
        if ranks <= 1:
            return []
        problems = []
        patches = self.train.micro_batch * self.model.context // self.model.patch
        if heads % ranks:
            problems.append(
                f"train.sequence_parallel_size {ranks} does not divide stage 0's "
                f"{plural(heads, 'head')}"
            )
        if patches % ranks:
            problems.append(
                f"train.sequence_parallel_size {ranks} does not divide a micro batch's "
                f"{plural(patches, 'patch', 'patches')}"
            )
        if patches // ranks < self.model.reach:
            problems.append(
                f"train.sequence_parallel_size {ranks} leaves "
                f"{plural(patches // ranks, 'patch', 'patches')} of a micro batch to a rank, and "
                f"cross_patch_attention needs {self.model.reach}"
            )
        return problems


def plural(count: int, singular: str, plural_form: str = "") -> str:
    """Return a count with its noun: `1 process`, `2 processes`; the plural's default adds an s."""
    return f"{count:,} {singular if count == 1 else plural_form or singular + 's'}"


def load_config(path: Path, overrides: list[str]) -> RunConfig:
    """Read and check a config file.

    Args:
        overrides: `section.key=value` texts; each replaces a value of the file.
    Raises:
        ValueError: if the file is missing or no mapping, a key is missing, unknown (with the
            nearest known one) or there twice, or a value has the wrong type or range.
    """
    values = read_config_file(path)
    for override in overrides:
        override_value(values, override)
    return config_from_dict(values)


def config_from_dict(values: dict[str, Any]) -> RunConfig:
    """Check plain values and make them a config; raises ValueError as `load_config` does."""
    values = {**values, "model": _resolve_model(values.get("model"))}
    return build(RunConfig, values)


def _resolve_model(model: Any) -> Any:
    """The model section with the fields of its preset filled in."""
    if isinstance(model, str):
        return preset(model).to_dict()
    if isinstance(model, dict) and "preset" in model:
        changes = {key: value for key, value in model.items() if key != "preset"}
        return {**preset(str(model["preset"])).to_dict(), **changes}
    return model


def override_value(values: dict[str, Any], override: str) -> None:
    """Replace a value of a config in plain values by a text `section.key=value`.

    Raises:
        ValueError: if the text has another form, or its key leads through a single value.
    """
    key, separator, text = override.partition("=")
    if not (separator and key):
        raise ValueError(f"--set takes section.key=value, not {override!r}")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if section == "model" and isinstance(inner, str):
            inner = values["model"] = {"preset": inner}
        if not isinstance(inner, dict):
            raise ValueError(f"--set {override}: {section} is no section of the config")
        values = inner
    try:
        values[last] = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"--set {override}: the value {error}") from error
