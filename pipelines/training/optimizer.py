"""The optimizer of a run, Muon with AdamW or AdamW alone, and its learning rates by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import OptimizerConfig
from bytelm.pipelines.training.muon import Muon


def make_optimizer(
    model: Megabyte, config: OptimizerConfig, precision: str
) -> torch.optim.AdamW | Muon:
    """Build the optimizer of a config, on the whole parameters of a model of `precision`."""
    options: dict[str, Any] = {
        "lr": config.adamw_lr,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if config.name == "adamw":
        return torch.optim.AdamW([{"params": model.parameters(), "is_muon": False}], **options)
    matrices = hidden_matrices(model)
    matrix_ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in matrix_ids]
    return Muon(matrices, rest, torch.bfloat16 if precision == "bf16" else torch.float32, **options)


def hidden_matrices(model: Megabyte) -> list[Tensor]:
    """List the weights of the stages' linear layers, which are no tables, heads or vectors."""
    layers = [m for stage in model.stages for m in stage.modules() if isinstance(m, nn.Linear)]
    return [layer.weight for layer in layers]


def set_options(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> None:
    """Set every group's options but the learning rate, which a checkpoint brought its own of."""
    for group in optimizer.param_groups:
        group["weight_decay"] = config.weight_decay
        if "betas" in group:
            group["betas"] = config.betas


def set_learning_rates(
    optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimizerConfig
) -> float:
    """Set every group's learning rate for step `step` (from 0) of `steps`; returns AdamW's."""
    factor = learning_rate_factor(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = factor * (config.muon_lr if group["is_muon"] else config.adamw_lr)
    return factor * config.adamw_lr


def learning_rate_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """Factor of the peak learning rates at step `step` (from 0) of `steps`, at most 1.

    Linear warm-up over `warmup_steps`, then linear decay to 0: polynomial decay of power 1, as in
    the paper's appendix on training.
    """
    warmup = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    decay = (steps - step) / max(1, steps - config.warmup_steps)
    return min(warmup, decay, 1.0)
