"""Muon for matrices in AdamW's place, on whole matrices or on the parts that ZeRO gives a rank.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/) is SGD with Nesterov momentum that
replaces the update G = U S V^T of a matrix by an orthogonal one near it, U V^T, which a
Newton-Schulz iteration approximates. The iteration needs whole matrices; `muon_sharding` brings
the parts of a matrix together on one rank and returns the result.

    M   matrices in a batch
    m   rows of a matrix        n   columns of a matrix
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bytelm.pipelines.training.muon_sharding import MatrixShards

MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x <- a x + b x^3 + c x^5 on the singular values, with the largest slope at 0."""


class Muon(torch.optim.AdamW):
    """AdamW, except that parameter groups with `is_muon` take the step of `torch.optim.Muon`.

    Parameters of those groups are matrices. Under ZeRO they are flat tensors with a rank's part of
    several matrices, and `shards` has to say how the matrices lie in each.
    """

    def __init__(
        self, matrices: list[Tensor], rest: list[nn.Parameter], dtype: torch.dtype, **adamw: Any
    ) -> None:
        """
        Args:
            matrices: the parameters that Muon trains.
            rest: the parameters that AdamW trains.
            dtype: in which matrices are orthogonalized. torch.optim.Muon does it in bfloat16,
                where the last digit of a gradient moves the loss of a few steps by 1e-4.
            adamw: options of torch.optim.AdamW.
        """
        groups = [{"params": matrices, "is_muon": True}, {"params": rest, "is_muon": False}]
        super().__init__(groups, **adamw)
        self.dtype = dtype
        self.shards: dict[Tensor, MatrixShards] = {}

    # The check ignores the override: torch declares two overloads, one signature matches none
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step. Under ZeRO every rank has to call it."""
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
        gradients = [self._nesterov_gradient(p).to(self.dtype) for p in parameters]
        lr, decay = group["lr"], 1 - group["lr"] * group["weight_decay"]
        if not self.shards:
            for p, update in zip(parameters, orthogonalize(gradients), strict=True):
                p.mul_(decay).add_(update, alpha=-lr * update_scale(p.shape))
            return
        for p, gradient in zip(parameters, gradients, strict=True):
            shards = self.shards[p]
            updates = shards.map_whole_matrices(orthogonalize, gradient)
            p.mul_(decay)
            for part, update, shape in zip(
                shards.local_parts(p), updates, shards.shapes, strict=True
            ):
                part.add_(update, alpha=-lr * update_scale(shape))

    def _nesterov_gradient(self, p: Tensor) -> Tensor:
        """The gradient moved towards its running mean, which is updated."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            # AdamW's names, so that one way to and from a checkpoint serves both.
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p)
        state["step"] += 1
        mean = state["exp_avg"].lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(mean, MOMENTUM)


def update_scale(shape: torch.Size) -> float:
    """Factor of the learning rate of an [m, n] matrix that makes outputs change alike at any shape.

    It is max(1, m/n)^0.5, that of `torch.optim.Muon`.
    """
    rows, columns = shape
    return math.sqrt(max(1, rows / columns))


def orthogonalize(matrices: Sequence[Tensor], steps: int = NEWTON_SCHULZ_STEPS) -> list[Tensor]:
    """Return U S' V^T, with singular values S' near 1, for each [m, n] matrix U S V^T.

    Matrices of one shape are computed as a batch.
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
    """Iterate x <- a x + (b x x^T + c (x x^T)^2) x on a batch of matrices [M, m, n]."""
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
