"""Muon (https://kellerjordan.github.io/posts/muon/) beside AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bytelm.pipelines.training.muon_sharding import Slices

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x <- a x + b x^3 + c x^5 on the singular values: the largest slope at 0."""


class Muon(torch.optim.AdamW):
    """AdamW, whose groups with `is_muon` take the step of `torch.optim.Muon` in its place.

    Their parameters are matrices, or flat slices of several, once `slices` says how they lie.
    """

    def __init__(
        self, matrices: list[Tensor], rest: list[nn.Parameter], dtype: torch.dtype, **adamw: Any
    ) -> None:
        """
        Args:
            dtype: in which matrices are made orthogonal. torch.optim.Muon does it in bfloat16,
                where a last digit of the gradient moves the loss of a few steps by 1e-4.
            adamw: what torch.optim.AdamW takes.
        """
        groups = [{"params": matrices, "is_muon": True}, {"params": rest, "is_muon": False}]
        super().__init__(groups, **adamw)
        self.dtype = dtype
        self.slices: dict[Tensor, Slices] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; under ZeRO every rank has to call it.

        torch has two overloads here, which one signature for both does not match to mypy.
        """
        groups = self.param_groups
        for group in groups:
            if group["is_muon"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["is_muon"]]
        loss = super().step(closure)
        self.param_groups = groups
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        updates = [self._nesterov(p).to(self.dtype) for p in parameters]
        keep = 1 - group["lr"] * group["weight_decay"]
        if not self.slices:
            for p, update in zip(parameters, orthogonal(updates), strict=True):
                p.mul_(keep).add_(update, alpha=-group["lr"] * _stretch(p.shape))
            return
        for p, update in zip(parameters, updates, strict=True):
            slices = self.slices[p]
            pieces = slices.on_whole_matrices(orthogonal, update)
            p.mul_(keep)
            for part, piece, shape in zip(slices.parts(p), pieces, slices.shapes, strict=True):
                part.add_(piece, alpha=-group["lr"] * _stretch(shape))

    def _nesterov(self, p: Tensor) -> Tensor:
        """What is made orthogonal: the gradient, moved on by its running mean."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            # AdamW's names, so that its way from and to a checkpoint serves for both.
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p)
        state["step"] += 1
        mean = state["exp_avg"].lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(mean, MOMENTUM)


def _stretch(shape: torch.Size) -> float:
    """What a matrix's rate is multiplied by, so that outputs change alike for all shapes."""
    rows, columns = shape
    return math.sqrt(max(1, rows / columns))


def orthogonal(matrices: Sequence[Tensor], steps: int = 5) -> list[Tensor]:
    """U S' V^T, with singular values near 1, for each G = U S V^T [m, n].

    Matrices of one shape run as a batch.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    results = list(matrices)
    for indices in by_shape.values():
        batch = newton_schulz(torch.stack([matrices[i] for i in indices]), steps)
        for i, result in zip(indices, batch, strict=True):
            results[i] = result
    return results


def newton_schulz(x: Tensor, steps: int) -> Tensor:
    """The iteration of `orthogonal` on a batch x [M, m, n]."""
    a, b, c = NEWTON_SCHULZ
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT  # [M, m, m]
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x
