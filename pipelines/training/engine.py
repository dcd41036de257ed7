"""DeepSpeed behind one class: this file and `sharded_model.py` are the only ones that import it.

The run's config owns batch size, optimizer, learning rates, clipping and precision; a JSON of
`ds_configs` owns ZeRO and offload. Importing DeepSpeed takes seconds, so it is imported inside the
functions that need it.

    B   rows of a micro batch        L   ids in a row
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bytelm.modalities import MODALITIES
from bytelm.model.megabyte import Megabyte
from bytelm.model.sequence_parallel import SequenceParallel
from bytelm.pipelines.checkpoints.manifest import DEEPSPEED_FOLDER
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.data.batch import Batch, Damage, Origin
from bytelm.pipelines.runtime.device import resolve_precision, this_device
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.training import reshard
from bytelm.pipelines.training.deepspeed_config import (
    deepspeed_config,
    number_formats,
    zero_stage,
)
from bytelm.pipelines.training.muon import Muon
from bytelm.pipelines.training.muon_sharding import MatrixShards
from bytelm.pipelines.training.optimizer import make_optimizer, set_learning_rates, set_options
from bytelm.pipelines.training.step_statistics import (
    StepStatistics,
    count_ids,
    finite_rows,
    nats_by_modality,
)

T = TypeVar("T")

NEVER = 1 << 60
"""Steps between lines that DeepSpeed prints itself."""


class Engine:
    """A model under DeepSpeed: training steps, evaluation, and its part of checkpoints.

    Every rank has one. A method that exchanges something between ranks has to be called by all.
    """

    def __init__(self, model: Megabyte, config: RunConfig):
        """
        Args:
            config: of the run; `self.config` has its precision resolved for this device.
        """
        self.rank = dist.get_rank()
        self.ranks = dist.get_world_size()
        self.device = this_device()
        precision = resolve_precision(self.device, config.train.precision)
        self.config = config = replace(config, train=replace(config.train, precision=precision))
        self.accumulation = config.accumulation(self.ranks)
        # Ranks of one sequence-parallel group share rows, so data parallelism is over the groups.
        group_size = config.train.sequence_parallel_size
        self.data_parallel_rank = self.rank // group_size
        self.data_parallel_size = self.ranks // group_size
        self._sequence_parallel = self._join_sequence_parallel_group() if group_size > 1 else None
        self.zero_stage = zero_stage(config.train.deepspeed)
        optimizer = make_optimizer(model, config.optimizer, precision)
        self._parameter_names = reshard.parameter_names(optimizer, model)
        self._unsharded_grad_norm = 0.0
        """Norm of the last gradient at ZeRO 0, where DeepSpeed does not compute it."""
        if self.zero_stage == 0:
            optimizer.register_step_pre_hook(self._drop_nonfinite_gradients)
        self._initialize_deepspeed(model, optimizer)
        if isinstance(optimizer, Muon):
            optimizer.shards = self._matrix_shards()

    # --- steps ---

    def train_step(self, step: int, steps: int, micro_batches: Sequence[Batch]) -> StepStatistics:
        """Take optimizer step `step` (from 0) of `steps`, on this rank's part of a global batch.

        The loss is Σ nats / Σ scored ids of the whole global batch, for any number of ranks and
        micro batches.
        """
        assert len(micro_batches) == self.accumulation
        lr = set_learning_rates(self._optimizer, step, steps, self.config.optimizer)
        # Dropout's noise is a function of the step, so that a resumed run draws the same.
        torch.manual_seed(hash((self.config.train.seed, step, self.rank)) & 0xFFFFFFFF)
        counted = self._batches_counted_here(micro_batches)
        scored = int(self._sum(torch.tensor(sum(int(b.scored.sum()) for b in counted))))
        # DeepSpeed divides by the number of micro batches and of ranks.
        scale = self.accumulation * self.ranks / max(1, scored)
        nats_of: list[Tensor] = []  # by micro batch
        self._engine.train()
        for number, batch in enumerate(micro_batches, 1):
            on_device = batch.to(self.device)
            inputs = on_device.inputs(self.device)
            nats = self._engine(*inputs, self._sequence_parallel, on_device.targets)
            self._backward_and_step(nats, on_device, scale, is_last=number == self.accumulation)
            nats_of.append(nats.detach())
        # Only here does a GPU have to be waited for.
        nats_sums = torch.zeros(1 + len(MODALITIES), dtype=torch.float64)
        is_finite: list[bool] = []  # by row
        for batch, nats in zip(micro_batches, torch.stack(nats_of).cpu(), strict=True):
            is_finite += finite_rows(nats, batch)
            nats_sums += nats_by_modality(nats, batch)
        nats_sums, damage, counts = self._sum_over_step(nats_sums, counted)
        grad_norm, is_applied = self._outcome()
        return StepStatistics(
            nats=float(nats_sums[0]),
            scored=scored,
            payload_nats=dict(zip(MODALITIES, nats_sums[1:].tolist(), strict=True)),
            payload_bytes=dict(zip(MODALITIES, counts[:-1].tolist(), strict=True)),
            damage=damage,
            pad_ids=int(counts[-1]),
            grad_norm=grad_norm,
            lr=lr,
            is_applied=is_applied,
            suspects=[] if is_applied else self._suspects(micro_batches, is_finite),
        )

    @torch.no_grad()
    def nats(self, batch: Batch) -> Tensor:
        """Compute [B, L] float32 nats of each id, without dropout.

        Each rank has rows of its own here, also where training shares them. Every rank has to
        call it.
        """
        self._engine.eval()
        nats: Tensor = self._engine(*batch.inputs(self.device))
        return nats

    def _batches_counted_here(self, micro_batches: Sequence[Batch]) -> Sequence[Batch]:
        """The micro batches whose ids this rank counts: in a group that shares rows, only the first
        rank counts them."""
        is_first = self._sequence_parallel is None or self._sequence_parallel.rank == 0
        return micro_batches if is_first else []

    def _backward_and_step(self, nats: Tensor, batch: Batch, scale: float, is_last: bool) -> None:
        """Accumulate the gradient of a micro batch; the last one of a step updates the weights."""
        loss = nats.where(batch.scored, 0.0).sum() * scale
        # The factor is 1, or NaN if the loss is not finite: then the gradient is NaN too.
        self._engine.backward(loss * (1.0 + 0.0 * loss.detach()))
        if is_last and self.zero_stage == 0:
            self._unsharded_grad_norm = self._compute_grad_norm()
        self._engine.step()

    def _compute_grad_norm(self) -> float:
        norms = [p.grad.norm() for p in self._engine.module.parameters() if p.grad is not None]
        return float(torch.stack(norms).norm())

    def _outcome(self) -> tuple[float, bool]:
        """Norm of the step's gradient, NaN if the update was skipped; whether it was applied."""
        if self.zero_stage == 0:
            grad_norm = self._unsharded_grad_norm
            is_applied = math.isfinite(grad_norm)
        else:
            is_applied = self._engine.was_step_applied()
            grad_norm = float(self._engine.get_global_grad_norm()) if is_applied else math.nan
        return (grad_norm if is_applied else math.nan), is_applied

    def _drop_nonfinite_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Remove gradients that are not finite before a step at ZeRO 0, so that it changes nothing.

        DeepSpeed skips these steps itself at the other stages.
        """
        if not math.isfinite(self._unsharded_grad_norm):
            optimizer.zero_grad(set_to_none=True)

    def _sum_over_step(
        self, nats: Tensor, counted: Sequence[Batch]
    ) -> tuple[Tensor, list[Damage], Tensor]:
        """Sums over ranks of `nats_by_modality` and `count_ids`, and the damage on all ranks."""
        damage = [piece for batch in counted for piece in batch.damage]
        nats = self._sum(nats)
        counts = self._sum(torch.cat([torch.tensor([len(damage)]), count_ids(counted)]))
        return nats, self.gather(damage) if counts[0] else [], counts[1:]

    def _suspects(self, micro_batches: Sequence[Batch], is_finite: Sequence[bool]) -> list[Origin]:
        rows = [origin for batch in micro_batches for origin in batch.origins if origin]
        bad = [origin for origin, good in zip(rows, is_finite, strict=True) if not good]
        suspects = self.gather(bad) or self.gather(rows)
        return list(dict.fromkeys(suspects))  # ranks that share a row name it once each

    # --- ranks ---

    def sum_over_ranks(self, values: Sequence[float], dtype: torch.dtype) -> list[Any]:
        """Return the sum of each value over ranks. Every rank has to call it."""
        return self._sum(torch.tensor(values, dtype=dtype)).tolist()

    def gather(self, items: list[T]) -> list[T]:
        """Return the items of all ranks, by rank. Every rank has to call it."""
        parts: list[list[T]] = [[] for _ in range(self.ranks)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def from_rank_0(self, value: T) -> T:
        """Return the value that rank 0 has. Every rank has to call it."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        dist.barrier()

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on the CPU."""
        summed = values.to(self.device)
        dist.all_reduce(summed)
        return summed.cpu()

    # --- checkpoints ---

    def save(self, folder: Path, take: Callable[[dict[str, Any], Path], None]) -> None:
        """Hand out this rank's part of weights and optimizer, file by file.

        Every rank has to call it.

        Args:
            folder: that the checkpoint's files are for; all ranks share it.
            take: is called with each file's content, whose tensors are the engine's own, and path.
        Raises:
            OSError, RuntimeError: of `take`. They are raised once all ranks are through, so that a
                rank that fails leaves no other one waiting.
        """
        errors: list[OSError | RuntimeError] = []

        def hand_out(state_dict: dict[str, Any], path: str) -> None:
            try:
                take(state_dict, Path(path))
            except (OSError, RuntimeError) as error:
                errors.append(error)

        self._engine.checkpoint_engine.save = hand_out
        # It copies a script that makes fp32 weights, which the exported model has already.
        self._engine._copy_recovery_script = lambda folder: None
        self._engine.save_checkpoint(
            str(folder), tag=DEEPSPEED_FOLDER, client_state={}, save_latest=False
        )
        if errors:
            raise errors[0]

    def load(self, folder: Path, ranks: int, zero_stage: int) -> None:
        """Load what `save` wrote.

        Args:
            ranks: the number of ranks that wrote it.
            zero_stage: the ZeRO stage under which it was written. If both are this engine's, the
                run continues to the last bit.
        """
        if (ranks, zero_stage) == (self.ranks, self.zero_stage):
            path, _ = self._engine.load_checkpoint(str(folder), tag=DEEPSPEED_FOLDER)
            assert path, f"DeepSpeed found no checkpoint in {folder}"
            set_options(self._optimizer, self.config.optimizer)
            if zero_stage:  # DeepSpeed restored the limit that the checkpoint was written under
                self._optimizer.clip_grad = self.config.optimizer.max_grad_norm
            return
        saved = reshard.SavedTensors(
            folder / DEEPSPEED_FOLDER, ranks, zero_stage, self._parameter_names
        )
        reshard.load(self._optimizer, self._engine.module, self.zero_stage, saved)

    def state_dict(self) -> dict[str, Tensor]:
        """Gather the whole weights one by one, in fp32 on the CPU of rank 0; empty on other ranks.

        Every rank has to call it.
        """
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

    # --- set up ---

    def _join_sequence_parallel_group(self) -> SequenceParallel:
        """This rank's position in its group, which is of consecutive ranks."""
        size = self.config.train.sequence_parallel_size
        timeout = _finite(self.config.train.rank_timeout)
        groups = [
            dist.new_group(list(range(first, first + size)), timeout=timeout)
            for first in range(0, self.ranks, size)
        ]
        group = groups[self.data_parallel_rank]
        assert isinstance(group, dist.ProcessGroup)
        return SequenceParallel(group, size, dist.get_rank(group))

    def _initialize_deepspeed(self, model: Megabyte, optimizer: torch.optim.Optimizer) -> None:
        import deepspeed

        train = self.config.train
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config={
                **deepspeed_config(train.deepspeed),
                # DeepSpeed takes the mean over all ranks, so those that share rows each count.
                "train_batch_size": train.global_batch * train.sequence_parallel_size,
                "train_micro_batch_size_per_gpu": train.micro_batch,
                "gradient_accumulation_steps": self.accumulation,
                "gradient_clipping": self.config.optimizer.max_grad_norm,
                "zero_allow_untested_optimizer": True,
                **number_formats(model, train.precision, train.communication),
                "steps_per_print": NEVER,
            },
        )

    def _matrix_shards(self) -> dict[Tensor, MatrixShards]:
        """The layout of the hidden matrices in each flat parameter that DeepSpeed made of them."""
        zero = self._optimizer
        rank = self.ranks, self.rank, self.device
        if self.zero_stage == 0:
            return {}
        if self.zero_stage < 3:
            return {
                flat: MatrixShards.from_flat_partition([p.shape for p in matrices], size, *rank)
                for group, flat, matrices, size in zip(
                    zero.param_groups,
                    zero.single_partition_of_fp32_groups,
                    zero.round_robin_bit16_groups,
                    zero.partition_size,
                    strict=True,
                )
                if group["is_muon"]
            }
        return {
            flat: MatrixShards.from_padded_parts([p.ds_shape for p in matrices], *rank)
            for index, (flat, matrices) in enumerate(
                zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
            )
            if zero.param_groups[zero.sub_group_to_group_id[index]]["is_muon"]
        }


def join_process_group(timeout: float) -> None:
    """Join the process group that torchrun's variables describe, or form one of this process.

    Args:
        timeout: seconds after which waiting for another rank is an error.
    Raises:
        ValueError: if this machine has GPUs, but fewer than processes.
    """
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    local_rank = int(os.environ["LOCAL_RANK"])
    gpus = torch.cuda.device_count()
    if gpus and local_rank >= gpus:
        raise ValueError(
            f"more processes were started on this machine than its GPUs, {gpus}: start one for "
            f"each (--nproc-per-node={gpus}), or set CUDA_VISIBLE_DEVICES= to train without"
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not torch.cuda.is_available():
        # Its shared-memory all-reduce needs a compiler; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    log = logging.getLogger("DeepSpeed")
    log.setLevel(logging.WARNING)
    # Our own optimizers are tested here, and `zero_allow_untested_optimizer` says so.
    log.addFilter(lambda record: "untested optimizer" not in record.getMessage())
    # DeepSpeed calls collectives by names that torch has begun to rename, in every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.init_distributed(verbose=False, timeout=_finite(timeout))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)


def _finite(seconds: float) -> timedelta:
    """A timeout as the process group takes it: ten years if there is no limit."""
    return min(timedelta(days=3650), timedelta(seconds=min(seconds, 1e9)))
