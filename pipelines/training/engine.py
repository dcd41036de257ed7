"""DeepSpeed behind one class: the only file that imports it.

The run's config owns batch size, optimizer, schedule, clipping and precision; a JSON of
`ds_configs` owns ZeRO and offload. DeepSpeed's import takes seconds, so it happens where it is
needed: `Engine` and `start_ranks`.

    B rows of a micro batch    L ids in a row    W ranks
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.model.megabyte import Megabyte
from bytelm.model.sequence_parallel import SequenceParallel
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.data.batch import Batch, Damage, Origin
from bytelm.pipelines.runtime.device import chosen_precision, this_device
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.training import reshard
from bytelm.pipelines.training.deepspeed_config import deepspeed_config
from bytelm.pipelines.training.muon import Muon
from bytelm.pipelines.training.muon_sharding import Slices
from bytelm.pipelines.training.optimizer import make_optimizer, set_learning_rates

T = TypeVar("T")

SHARDS = "deepspeed"
"""DeepSpeed's folder in a checkpoint."""


@dataclass(frozen=True)
class StepStatistics:
    """One optimizer step, over all ranks."""

    nats: float
    """-Σ log p of every scored id."""
    scored: int
    """Number of scored ids."""
    payload_nats: dict[str, float]
    """-Σ log p of the payload bytes of each modality."""
    payload_bytes: dict[str, int]
    damage: list[Damage]
    """Pieces that were masked."""
    pad_ids: int
    """Number of PAD ids."""
    grad_norm: float
    """Norm of the gradient before clipping; NaN where the update was skipped."""
    lr: float
    is_applied: bool
    """False where loss or gradient were not finite, and the update was skipped."""
    suspects: list[Origin]
    """Where a skipped update came from: the rows whose nats are not finite, or all of them."""

    @property
    def loss(self) -> float:
        """Nats for each scored id."""
        return self.nats / max(1, self.scored)


def start_ranks(timeout: float) -> None:
    """Join the process group, as torchrun's variables say, or as a single process.

    Args:
        timeout: seconds after which waiting for another rank is an error.
    Raises:
        ValueError: for more processes on a machine than it has GPUs, if it has any.
    """
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    gpus = torch.cuda.device_count()
    if gpus and int(os.environ["LOCAL_RANK"]) >= gpus:
        raise ValueError(
            f"more processes were started on this machine than its GPUs, {gpus}: start one for "
            f"each (--nproc-per-node={gpus}), or set CUDA_VISIBLE_DEVICES= to train without"
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not torch.cuda.is_available():
        # Its shared-memory all-reduce would need a compiler; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has begun to rename, in every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=timeout))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


class Engine:
    """A model under DeepSpeed: steps, evaluation, checkpoints and exported weights."""

    def __init__(self, model: Megabyte, config: RunConfig):
        import deepspeed

        self.rank = dist.get_rank()
        self.ranks = dist.get_world_size()
        self.device = this_device()
        precision = chosen_precision(self.device, config.train.precision)
        self.config = config = replace(config, train=replace(config.train, precision=precision))
        self.accumulation = config.accumulation(self.ranks)
        shared = config.train.sequence_parallel_size
        # Which of the groups of ranks this is that have rows of their own.
        self.group, self.groups = self.rank // shared, self.ranks // shared
        self._sequence_parallel = (
            _sequence_parallel_group(self.group, self.groups, config) if shared > 1 else None
        )
        self.zero_stage: int
        ds_config = deepspeed_config(config.train.deepspeed)
        self.zero_stage = ds_config["zero_optimization"]["stage"]
        optimizer = make_optimizer(model, config.optimizer, precision)
        self._names = reshard.parameter_names(optimizer, model)
        if self.zero_stage == 0:
            self._unsharded_grad_norm = 0.0
            optimizer.register_step_pre_hook(self._skip_what_is_not_finite)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config={
                **ds_config,
                # As if ranks that share rows had their own: its mean over ranks is what is meant.
                "train_batch_size": config.train.global_batch * shared,
                "train_micro_batch_size_per_gpu": config.train.micro_batch,
                "gradient_accumulation_steps": self.accumulation,
                "gradient_clipping": config.optimizer.max_grad_norm,
                "zero_allow_untested_optimizer": True,
                "torch_autocast": {
                    "enabled": precision == "bf16",
                    "dtype": "bfloat16",
                },
                "steps_per_print": 1 << 60,
            },
        )
        if isinstance(optimizer, Muon):
            optimizer.slices = self._slices()

    def _slices(self) -> dict[Tensor, Slices]:
        """How the hidden matrices lie in the flat parameters that DeepSpeed made of them."""
        zero = self._optimizer
        where = self.ranks, self.rank, self.device
        if self.zero_stage == 0:
            return {}
        if self.zero_stage < 3:
            return {
                flat: Slices.of_sequence([p.shape for p in parameters], size, *where)
                for group, flat, parameters, size in zip(
                    zero.param_groups,
                    zero.single_partition_of_fp32_groups,
                    zero.round_robin_bit16_groups,
                    zero.partition_size,
                    strict=True,
                )
                if group["is_muon"]
            }
        return {
            flat: Slices.of_each([p.ds_shape for p in parameters], *where)
            for index, (flat, parameters) in enumerate(
                zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
            )
            if zero.param_groups[zero.sub_group_to_group_id[index]]["is_muon"]
        }

    def train_step(self, step: int, steps: int, micro_batches: Sequence[Batch]) -> StepStatistics:
        """Optimizer step `step` (from 0) of `steps`, on this rank's part of a global batch.

        The loss is Σ nats / Σ scored ids of the whole global batch, whatever the number of ranks
        and micro batches.
        """
        assert len(micro_batches) == self.accumulation
        lr = set_learning_rates(self._optimizer, step, steps, self.config.optimizer)
        # Dropout's noise is a function of the step, so a resumed run draws the same.
        torch.manual_seed(hash((self.config.train.seed, step, self.rank)) & 0xFFFFFFFF)
        counted = (
            micro_batches
            if self._sequence_parallel is None or self._sequence_parallel.rank == 0
            else []
        )
        scored = self._sum(torch.tensor(sum(int(b.scored.sum()) for b in counted)))
        # DeepSpeed divides by the number of micro batches and of ranks.
        scale = self.accumulation * self.ranks / max(1, int(scored))
        sums = torch.zeros(1 + len(MODALITIES), dtype=torch.float64)
        counts = torch.zeros(2 + len(MODALITIES), dtype=torch.int64)
        damage = [d for b in counted for d in b.damage]
        is_finite: list[bool] = []  # by row
        grad_norm = math.nan
        self._engine.train()
        for number, batch in enumerate(micro_batches):
            nats = self._forward(batch, self._sequence_parallel)
            loss = nats[batch.scored.to(self.device)].sum() * scale
            # The factor is 1, or NaN where the loss is not finite: then the gradient is neither.
            self._engine.backward(loss * (1.0 + 0.0 * loss.detach()))
            is_finite += _is_finite(nats.detach(), batch)
            sums += _nats_by_modality(nats.detach(), batch)
            if number == self.accumulation - 1 and self.zero_stage == 0:
                grad_norm = self._unsharded_grad_norm = self._norm_of_gradients()
            self._engine.step()
        counts[0] = len(damage)
        for batch in counted:
            counts[1:-1] += _bytes_by_modality(batch)
            counts[-1] += (batch.ids == framing.PAD).sum()
        sums, counts = self._sum(sums), self._sum(counts)
        if counts[0]:
            damage = self.gather(damage)
        is_applied = math.isfinite(grad_norm)
        if self.zero_stage > 0:
            is_applied = self._engine.was_step_applied()
            grad_norm = float(self._engine.get_global_grad_norm()) if is_applied else math.nan
        suspects = [] if is_applied else self._suspects(micro_batches, is_finite)
        return StepStatistics(
            nats=float(sums[0]),
            scored=int(scored),
            payload_nats=dict(zip(MODALITIES, sums[1:].tolist(), strict=True)),
            payload_bytes=dict(zip(MODALITIES, counts[1:-1].tolist(), strict=True)),
            damage=damage,
            pad_ids=int(counts[-1]),
            grad_norm=grad_norm if is_applied else math.nan,
            lr=lr,
            is_applied=is_applied,
            suspects=suspects,
        )

    def _suspects(self, micro_batches: Sequence[Batch], is_finite: Sequence[bool]) -> list[Origin]:
        rows = [origin for batch in micro_batches for origin in batch.origins if origin]
        bad = [origin for origin, good in zip(rows, is_finite, strict=True) if not good]
        found = self.gather(bad) or self.gather(rows)
        return list(dict.fromkeys(found))  # ranks that share a row name it once each

    @torch.no_grad()
    def nats(self, batch: Batch) -> Tensor:
        """[B, L] float32 nats of each id, without dropout, of rows that each rank has to itself;
        every rank has to call it."""
        self._engine.eval()
        return self._forward(batch, None)

    def _forward(self, batch: Batch, sequence_parallel: SequenceParallel | None) -> Tensor:
        ids, document, modality, codec_features = batch.inputs(self.device)
        return self._engine(ids, document, modality, sequence_parallel, codec_features)

    def _skip_what_is_not_finite(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Before a step at ZeRO 0: without gradients nothing is updated. DeepSpeed skips such steps
        at the other stages."""
        if not math.isfinite(self._unsharded_grad_norm):
            optimizer.zero_grad(set_to_none=True)

    def _norm_of_gradients(self) -> float:
        norms = [p.grad.norm() for p in self._engine.module.parameters() if p.grad is not None]
        return float(torch.stack(norms).norm())

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on the CPU."""
        summed = values.to(self.device)
        dist.all_reduce(summed)
        return summed.cpu()

    def sum_over_ranks(self, values: Sequence[float], dtype: torch.dtype) -> list[Any]:
        """The sums of each value over ranks; every rank has to call it."""
        return self._sum(torch.tensor(values, dtype=dtype)).tolist()

    def gather(self, items: list[T]) -> list[T]:
        """The items of all ranks, in their order; every rank has to call it."""
        parts: list[list[T]] = [[] for _ in range(self.ranks)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()

    # --- checkpoints ---

    def save(self, folder: Path) -> list[Path]:
        """Write this rank's part of weights and optimizer into a folder that all ranks share.

        Returns the files that this rank wrote. Raises what torch does where a file cannot be
        written, but once all ranks are through: a rank that fails leaves no other one waiting.
        """
        written: list[Path] = []
        errors: list[OSError | RuntimeError] = []

        def write(state_dict: dict[str, Any], path: str) -> None:
            try:
                with open(path, "wb") as file:
                    torch.save(state_dict, file)
                written.append(Path(path))
            except (OSError, RuntimeError) as error:
                errors.append(error)

        self._engine.checkpoint_engine.save = write
        # It would copy a script that makes fp32 weights, which `model/` holds already.
        self._engine._copy_recovery_script = lambda folder: None
        self._engine.save_checkpoint(str(folder), tag=SHARDS, client_state={}, save_latest=False)
        if errors:
            raise errors[0]
        return written

    def load(self, folder: Path, ranks: int, zero_stage: int) -> None:
        """Load what `save` wrote under so many ranks and a ZeRO stage; to the last bit where they
        are those of this engine."""
        if (ranks, zero_stage) == (self.ranks, self.zero_stage):
            path, _ = self._engine.load_checkpoint(str(folder), tag=SHARDS)
            assert path, f"DeepSpeed found no checkpoint in {folder}"
            return
        saved = reshard.SavedTensors(folder / SHARDS, ranks, zero_stage, self._names)
        reshard.load(self._optimizer, self._engine.module, self.zero_stage, saved)

    def state_dict(self) -> dict[str, Tensor]:
        """The whole weights in fp32 on the CPU, gathered one by one; empty but on rank 0.
        Every rank has to call it."""
        weights: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters(remove_duplicate=False):
            with self._gathered(parameter):
                if self.rank == 0:
                    weights[name] = parameter.detach().to("cpu", torch.float32, copy=True)
        return weights

    @contextmanager
    def _gathered(self, parameter: torch.nn.Parameter) -> Iterator[None]:
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage == 3):
            yield


def _sequence_parallel_group(group: int, groups: int, config: RunConfig) -> SequenceParallel:
    """This rank's place among those that share its rows, which follow one another. Every rank has
    to call it."""
    ranks, timeout = (
        config.train.sequence_parallel_size,
        timedelta(seconds=config.train.rank_timeout),
    )
    first = range(0, groups * ranks, ranks)
    made = [dist.new_group(list(range(n, n + ranks)), timeout=timeout) for n in first]
    own = made[group]
    assert isinstance(own, dist.ProcessGroup)
    return SequenceParallel(own, ranks, dist.get_rank(own))


def _nats_by_modality(nats: Tensor, batch: Batch) -> Tensor:
    """[1 + modalities] float64: of all scored ids, then of each modality's payload."""
    values = nats.to("cpu", torch.float64)
    masks = [batch.payload & (batch.modality == m.code) for m in MODALITIES.values()]
    return torch.stack([values[mask].sum() for mask in (batch.scored, *masks)])


def _is_finite(nats: Tensor, batch: Batch) -> list[bool]:
    """Of each row: whether the nats of all its scored ids are finite."""
    return (nats.cpu().isfinite() | ~batch.scored).all(1).tolist()


def _bytes_by_modality(batch: Batch) -> Tensor:
    """[modalities] int64: payload bytes."""
    masks = [batch.payload & (batch.modality == m.code) for m in MODALITIES.values()]
    return torch.stack([mask.sum() for mask in masks])
