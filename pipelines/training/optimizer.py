"""Muon for the hidden matrices and AdamW for the rest, on whatever part of them a rank holds.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/) is SGD with momentum whose update
of a matrix is replaced by an orthogonal one near it. It needs whole matrices, and a rank under
ZeRO has slices: the pieces of a matrix go to one rank, which makes it orthogonal, and come back.
A matrix that one rank holds whole is not sent.

    M matrices    W ranks    m, n rows and columns
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import OptimizerConfig
from bytelm.pipelines.training.muon import Muon


def schedule(step: int, steps: int, config: OptimizerConfig) -> float:
    """The share of the learning rates at step `step` (from 0) of `steps`: linear warm-up, then
    linear decay to 0 (polynomial decay of power 1; the paper, appendix on training)."""
    warm = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    decay = (steps - step) / max(1, steps - config.warmup_steps)
    return min(warm, decay, 1.0)


def hidden_matrices(model: Megabyte) -> list[Tensor]:
    """The weights of the stages' linear layers: what is neither a table, a head nor a vector."""
    layers = [m for stage in model.stages for m in stage.modules() if isinstance(m, nn.Linear)]
    return [layer.weight for layer in layers]


def make_optimizer(
    model: Megabyte, config: OptimizerConfig, precision: str
) -> torch.optim.AdamW | Muon:
    """The optimizer of a config, on the whole parameters of a model of `precision`."""
    options: dict[str, Any] = {
        "lr": config.adamw_lr,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if config.name == "adamw":
        return torch.optim.AdamW([{"params": model.parameters(), "is_muon": False}], **options)
    matrices = hidden_matrices(model)
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return Muon(matrices, rest, torch.bfloat16 if precision == "bf16" else torch.float32, **options)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimizerConfig
) -> float:
    """Give every group its rate of step `step` (from 0) of `steps`; returns AdamW's."""
    share = schedule(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = share * (config.muon_lr if group["is_muon"] else config.adamw_lr)
    return share * config.adamw_lr
