"""Who runs in the quality table, each a model, its optimizer, and its nats of every id.

Ours are the presets at other sizes: `modern` and `paper` with two stages, `flat` with the options
of `modern` that one stage can have, and `flat-window`, whose positions see the last WINDOW bytes.
`paper` has AdamW, the others Muon. The peers are those of `contestants.py`, with AdamW and the loss
that they have; they know no documents and see a row as one sequence.

    B rows, here 1    T ids in a row    V vocabulary
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
from bytelm.pipelines.runtime.device import chosen_precision, this_device
from bytelm.pipelines.training.optimizer import make_optimizer
from bytelm.tools.benchmarks.peers import HEAD, Contestant, Shape, mblm, megabyte_pytorch

PATCH = 16
"""Ids in a patch of the rows, a multiple of every entrant's; flat models see these rows too."""
WINDOW = 512


@dataclass(frozen=True)
class Settings:
    """What is searched for each entrant."""

    width: int
    """Of stage 0; the local stage follows from it by `two_stages`."""
    layers: int
    patch: int
    """P; 0 for a model of one stage."""
    lr: float
    """AdamW's."""
    rotary: bool = False
    """The peers' one switch; ours have what their presets have."""

    def __str__(self) -> str:
        rotary = " rotary" if self.rotary else ""
        patch = f" P {self.patch}" if self.patch else ""
        return f" {self.width}x{self.layers}{patch} lr {self.lr:g}{rotary}"


def precision() -> str:
    """In which all entrants compute: bf16, or fp32 where the device has no bf16."""
    return chosen_precision(this_device(), "auto")


class Entrant(ABC):
    """A model in training, on the GPU where the machine has one."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    """Each of its groups has its learning rate at the end of the warm-up under `peak`."""
    codec_features = False
    """As of `RowDataset`."""

    @abstractmethod
    def row_flops(self, context: int) -> float:
        """FLOPs of training on a row of T ids: products and all pairs of places in attention."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Mean nats of the ids that are trained."""

    @abstractmethod
    def nats(self, batch: Batch) -> Tensor:
        """-log p of every id given those before it, [B, T]."""


class OwnEntrant(Entrant):
    """One of ours."""

    def __init__(self, config: ModelConfig, chosen: OptimizerConfig) -> None:
        self.model = Megabyte(config).to(this_device())
        self.config = config
        self.codec_features = config.codec_features
        self.optimizer = make_optimizer(self.model, chosen, precision())
        for group in self.optimizer.param_groups:
            group["peak"] = chosen.muon_lr if group["is_muon"] else chosen.adamw_lr

    def row_flops(self, context: int) -> float:
        return training_flops_per_byte(self.config) * context

    def loss(self, batch: Batch) -> Tensor:
        return self.nats(batch)[batch.scored.to(this_device())].mean()

    def nats(self, batch: Batch) -> Tensor:
        ids, document, modality, codec_features = batch.inputs(this_device())
        nats: Tensor = self.model(ids, document, modality, codec_features=codec_features)
        return nats


def optimizer(name: Literal["muon", "adamw"], lr: float) -> OptimizerConfig:
    """With one rate for Muon and AdamW, as in the defaults of a run."""
    return OptimizerConfig(name=name, lr=lr, muon_lr=lr)


class PeerEntrant(Entrant):
    """A model that others have written.

    Args:
        loss: mean nats of all ids [B, T] that are not PAD.
        logits: [B, T, V] for ids [B, T]; those at place t are of id t + 1.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor], Tensor],
        logits: Callable[[Tensor], Tensor],
        lr: float,
    ) -> None:
        self.model = model.to(this_device())
        self._loss = loss
        self._logits = logits
        defaults = OptimizerConfig()
        self.optimizer = torch.optim.AdamW(
            [{"params": model.parameters(), "peak": lr}],
            lr=lr,
            betas=defaults.betas,
            weight_decay=defaults.weight_decay,
            fused=True,
        )

    def row_flops(self, context: int) -> float:
        ids = torch.zeros(1, context, dtype=torch.int64, device=this_device())
        return Contestant(self.model, self._loss).counted_flops(ids)

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(batch.ids.to(this_device()).long())

    def nats(self, batch: Batch) -> Tensor:
        """As of every entrant; the first id's come from the loss of a row that has it alone."""
        ids = batch.ids.to(this_device()).long()
        assert len(ids) == 1, "the loss of a first id is that of one row"
        logits = self._logits(ids)[0, :-1].float()  # [T - 1, V]
        after = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        return torch.cat([self._loss(ids[:, :1])[None], after])[None]


@dataclass(frozen=True)
class Entry:
    """How an entrant is built, and what is tried for it; the first of each comes first."""

    build: Callable[[Settings, int], Entrant]
    """From its settings and T."""
    sizes: tuple[tuple[int, int, int], ...]
    """Width and layers of stage 0, and P."""
    lrs: tuple[float, float]
    rotary: tuple[bool, ...] = (False,)


def _modern(settings: Settings, context: int) -> Entrant:
    stages = two_stages(settings.width, settings.layers)
    config = replace(
        preset("modern-demo"),
        stages=stages,
        patch_sizes=(settings.patch,),
        cross_patch_attention=settings.patch,
        context=context,
        init_std=init_std(stages),
    )
    return OwnEntrant(config, optimizer("muon", settings.lr))


def _paper(settings: Settings, context: int) -> Entrant:
    """Without what only saves memory; its matrices start as the paper's do at every size."""
    config = replace(
        preset("paper-text"),
        stages=two_stages(settings.width, settings.layers),
        patch_sizes=(settings.patch,),
        context=context,
        local_chunk=0,
        activation_checkpointing=False,
    )
    return OwnEntrant(config, optimizer("adamw", settings.lr))


def _flat(window: int) -> Callable[[Settings, int], Entrant]:
    def build(settings: Settings, context: int) -> Entrant:
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
        return OwnEntrant(config, optimizer("muon", settings.lr))

    return build


def _shape(settings: Settings, context: int) -> Shape:
    above, local = two_stages(settings.width, settings.layers)
    return Shape(context, settings.patch, above.width, above.layers, local.width, local.layers)


def _megabyte_pytorch(settings: Settings, context: int) -> Entrant:
    model = megabyte_pytorch(_shape(settings, context), rotary=settings.rotary)
    return PeerEntrant(model, lambda ids: model(ids, return_loss=True), model, settings.lr)


def _mblm(settings: Settings, context: int) -> Entrant:
    model = mblm(_shape(settings, context), rotary=settings.rotary)
    from mblm import MBLMReturnType

    logits = MBLMReturnType.LOGITS
    return PeerEntrant(model, model, lambda ids: model(ids, return_type=logits), settings.lr)


TWO_STAGE_SIZES = ((128, 3, 16), (128, 3, 8), (256, 4, 16))
FLAT_SIZES = ((128, 3, 0), (128, 2, 0), (192, 4, 0))

ENTRIES: dict[str, Entry] = {
    "modern": Entry(_modern, TWO_STAGE_SIZES, (2e-2, 1e-2)),
    "paper": Entry(_paper, TWO_STAGE_SIZES, (2e-3, 6e-4)),
    "flat": Entry(_flat(0), FLAT_SIZES, (2e-2, 1e-2)),
    "flat-window": Entry(_flat(WINDOW), FLAT_SIZES, (2e-2, 1e-2)),
    "megabyte-pytorch": Entry(_megabyte_pytorch, TWO_STAGE_SIZES, (2e-3, 6e-4), (False, True)),
    "mblm": Entry(_mblm, TWO_STAGE_SIZES, (2e-3, 6e-4), (False, True)),
}


def build(entrant: str, settings: Settings, context: int) -> Entrant:
    """One of `ENTRIES`, for rows of `context` ids."""
    return ENTRIES[entrant].build(settings, context)
