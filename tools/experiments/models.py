"""Models of the quality table, each with its optimizer and its nats of every id.

Ours are the presets at other sizes: `modern` and `paper` with two stages, `flat` with the options
of `modern` that one stage can have, and `flat-window`, whose positions see the last WINDOW bytes.
`paper` has AdamW, the others Muon. The peers are those of `benchmarks/peers.py`, with AdamW and
their own loss; they know no documents and see a row as one sequence.

    B rows, here 1    T ids in a row    V vocabulary    P ids in a patch
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.flops import training_flops_per_byte
from bytelm.model.megabyte import Megabyte
from bytelm.model.presets import init_std, preset, two_stages
from bytelm.pipelines.config import OptimizerConfig
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.runtime.device import autocast, resolve_precision, this_device
from bytelm.pipelines.training.optimizer import make_optimizer
from bytelm.tools.benchmarks.measure_torch import counted_flops
from bytelm.tools.benchmarks.peers import HEAD, Shape, mblm, megabyte_pytorch

PATCH = 16
"""P of the rows, a multiple of every model's; flat models see these rows too."""
WINDOW = 512


@dataclass(frozen=True)
class Settings:
    """Hyperparameters that are searched for each model."""

    width: int
    """Width of stage 0; `two_stages` derives the local stage from it."""
    layers: int
    patch: int
    """P; 0 for a model of one stage."""
    lr: float
    """Peak learning rate, of AdamW and of Muon."""
    rotary: bool = False
    """Rotary embeddings of the peers; ours have what their presets have."""

    def __str__(self) -> str:
        rotary = " rotary" if self.rotary else ""
        patch = f" P {self.patch}" if self.patch else ""
        return f" {self.width}x{self.layers}{patch} lr {self.lr:g}{rotary}"


def precision() -> str:
    """Precision of all models: bf16, or fp32 where the device has no bf16."""
    return resolve_precision(this_device(), "auto")


class ComparedModel(ABC):
    """A model in training, on the GPU if the machine has one."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    """Each parameter group holds its learning rate at the end of the warm-up under `peak`."""
    codec_patch = 0
    """P of a model that reads codec features, as in `RowDataset`."""

    @abstractmethod
    def row_flops(self, context: int) -> float:
        """FLOPs of training on a row of T ids; attention counts all pairs of positions."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Mean nats of the trained ids."""

    @abstractmethod
    def nats(self, batch: Batch) -> Tensor:
        """-log p of every id given the preceding ones, [B, T]."""


class BytelmModel(ComparedModel):
    """A model of ours."""

    module: Megabyte

    def __init__(self, config: ModelConfig, optimizer_config: OptimizerConfig) -> None:
        self.module = Megabyte(config).to(this_device())
        self.config = config
        self.codec_patch = config.patch if config.codec_features else 0
        self.optimizer = make_optimizer(self.module, optimizer_config, precision())
        for group in self.optimizer.param_groups:
            is_muon = group["is_muon"]
            group["peak"] = optimizer_config.muon_lr if is_muon else optimizer_config.adamw_lr

    def row_flops(self, context: int) -> float:
        return training_flops_per_byte(self.config) * context

    def loss(self, batch: Batch) -> Tensor:
        return self.nats(batch)[batch.scored.to(this_device())].mean()

    def nats(self, batch: Batch) -> Tensor:
        nats: Tensor = self.module(*batch.inputs(this_device()))
        return nats


def optimizer_config(name: Literal["muon", "adamw"], lr: float) -> OptimizerConfig:
    """Config of an optimizer with one rate for Muon and AdamW, as a run has by default."""
    return OptimizerConfig(name=name, lr=lr, muon_lr=lr)


class PeerModel(ComparedModel):
    """A model of another code base."""

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor], Tensor],
        logits: Callable[[Tensor], Tensor],
        lr: float,
    ) -> None:
        """
        Args:
            loss: mean nats of all ids [B, T] that are not PAD.
            logits: [B, T, V] for ids [B, T]; those at position t are of id t + 1.
        """
        self.module = module.to(this_device())
        self._loss = loss
        self._logits = logits
        defaults = OptimizerConfig()
        self.optimizer = torch.optim.AdamW(
            [{"params": module.parameters(), "peak": lr}],
            lr=lr,
            betas=defaults.betas,
            weight_decay=defaults.weight_decay,
            fused=True,
        )

    def row_flops(self, context: int) -> float:
        ids = torch.zeros(1, context, dtype=torch.int64, device=this_device())

        def backward() -> None:
            with autocast(this_device(), precision()):
                loss = self._loss(ids)
            loss.backward()

        flops = counted_flops(backward)
        self.optimizer.zero_grad()
        return flops

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(batch.ids.to(this_device()).long())

    def nats(self, batch: Batch) -> Tensor:
        """See `ComparedModel`; nats of the first id are the loss of a row of that id alone."""
        ids = batch.ids.to(this_device()).long()
        assert len(ids) == 1, "the loss of a first id is that of one row"
        logits = self._logits(ids)[0, :-1].float()  # [T - 1, V]
        later_nats = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        return torch.cat([self._loss(ids[:, :1])[None], later_nats])[None]


@dataclass(frozen=True)
class SearchSpace:
    """How a model is built, and the values to try; the search begins at the first of each."""

    build: Callable[[Settings, int], ComparedModel]
    """Makes the model from its settings and T."""
    sizes: tuple[tuple[int, int, int], ...]
    """Width and layers of stage 0, and P."""
    lrs: tuple[float, float]
    rotary: tuple[bool, ...] = (False,)


def _modern(settings: Settings, context: int) -> ComparedModel:
    """`modern-demo` at another size."""
    stages = two_stages(settings.width, settings.layers)
    config = replace(
        preset("modern-demo"),
        stages=stages,
        patch_sizes=(settings.patch,),
        cross_patch_attention=settings.patch,
        context=context,
        init_std=init_std(stages),
    )
    return BytelmModel(config, optimizer_config("muon", settings.lr))


def _paper(settings: Settings, context: int) -> ComparedModel:
    """Without the options that only save memory; every size has the paper's initial deviation."""
    config = replace(
        preset("paper-text"),
        stages=two_stages(settings.width, settings.layers),
        patch_sizes=(settings.patch,),
        context=context,
        local_chunk=0,
        activation_checkpointing=False,
    )
    return BytelmModel(config, optimizer_config("adamw", settings.lr))


def _flat(window: int) -> Callable[[Settings, int], ComparedModel]:
    """Builder of `modern-demo` with one stage; a window of 0 attends to the whole row."""

    def build(settings: Settings, context: int) -> ComparedModel:
        stages = (StageConfig(settings.width, settings.layers, settings.width // HEAD),)
        config = replace(
            preset("modern-demo"),
            stages=stages,
            patch_sizes=(),
            cross_patch_attention=0,
            context=context,
            init_std=init_std(stages),
            attention_window=window,
        )
        return BytelmModel(config, optimizer_config("muon", settings.lr))

    return build


def _shape(settings: Settings, context: int) -> Shape:
    global_, local = two_stages(settings.width, settings.layers)
    return Shape(context, settings.patch, global_.width, global_.layers, local.width, local.layers)


def _megabyte_pytorch(settings: Settings, context: int) -> ComparedModel:
    model = megabyte_pytorch(_shape(settings, context), rotary=settings.rotary)
    return PeerModel(model, lambda ids: model(ids, return_loss=True), model, settings.lr)


def _mblm(settings: Settings, context: int) -> ComparedModel:
    model = mblm(_shape(settings, context), rotary=settings.rotary)
    from mblm import MBLMReturnType

    logits = MBLMReturnType.LOGITS
    return PeerModel(model, model, lambda ids: model(ids, return_type=logits), settings.lr)


TWO_STAGE_SIZES = ((128, 3, 16), (128, 3, 8), (256, 4, 16))
FLAT_SIZES = ((128, 3, 0), (128, 2, 0), (192, 4, 0))

SEARCH_SPACES: dict[str, SearchSpace] = {
    "modern": SearchSpace(_modern, TWO_STAGE_SIZES, (2e-2, 1e-2)),
    "paper": SearchSpace(_paper, TWO_STAGE_SIZES, (2e-3, 6e-4)),
    "flat": SearchSpace(_flat(0), FLAT_SIZES, (2e-2, 1e-2)),
    "flat-window": SearchSpace(_flat(WINDOW), FLAT_SIZES, (2e-2, 1e-2)),
    "megabyte-pytorch": SearchSpace(
        _megabyte_pytorch, TWO_STAGE_SIZES, (2e-3, 6e-4), (False, True)
    ),
    "mblm": SearchSpace(_mblm, TWO_STAGE_SIZES, (2e-3, 6e-4), (False, True)),
}


def build_model(name: str, settings: Settings, context: int) -> ComparedModel:
    """The model `name` of SEARCH_SPACES for rows of T ids."""
    return SEARCH_SPACES[name].build(settings, context)
