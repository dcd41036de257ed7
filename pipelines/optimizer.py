"""Muon for the hidden matrices and AdamW for the rest, on whatever part of them a rank holds.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/) is SGD with momentum whose update
of a matrix is replaced by an orthogonal one near it. It needs whole matrices, and a rank under
ZeRO has slices: the pieces of a matrix go to one rank, which makes it orthogonal, and come back.
A matrix that one rank holds whole is not sent.

    M matrices    W ranks    m, n rows and columns
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import OptimizerConfig

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x <- a x + b x^3 + c x^5 on the singular values: the largest slope at 0."""


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


class Slices:
    """How M matrices lie in a flat tensor of which every rank holds its own part.

    Each matrix has an owner, the rank that holds most of it, or the least busy of those.
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        counts: Tensor,
        starts: Sequence[int],
        rank: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            counts: [W, M] int64, the elements of each matrix that each rank holds, one rank's
                after another's.
            starts: where this rank's elements of each matrix lie in its tensor.
            device: where matrices are sent and made orthogonal.
        """
        self.shapes = shapes
        self.rank = rank
        self.device = device
        self.counts = counts
        self._starts = starts
        self._owners = _owners(shapes, counts)
        ranks = range(len(counts))
        self._of = [[i for i, owner in enumerate(self._owners) if owner == r] for r in ranks]
        self._own = self._of[rank]
        self._sent = [int(counts[rank, self._of[r]].sum()) for r in ranks]
        self._received = [int(counts[r, self._own].sum()) for r in ranks]

    @classmethod
    def of_sequence(
        cls, shapes: Sequence[torch.Size], size: int, ranks: int, rank: int, device: torch.device
    ) -> Slices:
        """ZeRO 1 and 2: the matrices lie one after another; rank r has elements r * size on."""
        sizes = torch.tensor([math.prod(s) for s in shapes])
        ends = sizes.cumsum(0)
        begins = ends - sizes
        first = torch.arange(ranks)[:, None] * size
        low = begins.clamp(min=first)  # [W, M]
        counts = (ends.clamp(max=first + size) - low).clamp(min=0)
        starts = (low[rank] - first[rank]).clamp(max=size)
        return cls(shapes, counts, starts.tolist(), rank, device)

    @classmethod
    def of_each(
        cls, shapes: Sequence[torch.Size], ranks: int, rank: int, device: torch.device
    ) -> Slices:
        """ZeRO 3: every matrix is cut into W parts, the last ones padded; each rank has one."""
        sizes = torch.tensor([math.prod(s) for s in shapes])
        parts = -(-sizes // ranks)
        first = torch.arange(ranks)[:, None] * parts
        counts = (sizes - first).clamp(min=0).minimum(parts)
        return cls(shapes, counts, (parts.cumsum(0) - parts).tolist(), rank, device)

    def parts(self, flat: Tensor) -> list[Tensor]:
        """This rank's elements of each matrix, as views of its tensor."""
        counts = self.counts[self.rank].tolist()
        return [flat[at : at + n] for at, n in zip(self._starts, counts, strict=True)]

    def on_whole_matrices(
        self, function: Callable[[list[Tensor]], list[Tensor]], flat: Tensor
    ) -> list[Tensor]:
        """This rank's elements of each matrix of function(matrices), which keeps shapes and types.

        flat: this rank's tensor. Every rank has to call it.
        """
        nothing = flat.to(self.device)[:0]
        parts = self.parts(flat.to(self.device))
        sent = torch.cat([nothing, *(parts[i] for of_rank in self._of for i in of_rank)])
        received = _exchange(sent, self._sent, self._received)
        pieces = [r.split(self.counts[k, self._own].tolist()) for k, r in enumerate(received)]
        matrices = [
            torch.cat(of_matrix).view(self.shapes[i])
            for i, of_matrix in zip(self._own, zip(*pieces, strict=True), strict=True)
        ]
        cut = [
            matrix.flatten().split(self.counts[:, i].tolist())
            for i, matrix in zip(self._own, function(matrices), strict=True)
        ]
        sent = torch.cat(
            [nothing, *(piece for of_rank in zip(*cut, strict=True) for piece in of_rank)]
        )
        result: dict[int, Tensor] = {}
        for of_rank, part in zip(
            self._of, _exchange(sent, self._received, self._sent), strict=True
        ):
            counts = self.counts[self.rank, of_rank].tolist()
            result |= zip(of_rank, part.to(flat.device).split(counts), strict=True)
        return [result[i] for i in range(len(self.shapes))]


def _owners(shapes: Sequence[torch.Size], counts: Tensor) -> list[int]:
    """The rank that makes each matrix orthogonal."""
    work = [0] * len(counts)
    owners = []
    for shape, held in zip(shapes, counts.T.tolist(), strict=True):
        most = max(held)
        owner = min((r for r, n in enumerate(held) if n == most), key=lambda r: work[r])
        work[owner] += math.prod(shape) * min(shape)
        owners.append(owner)
    return owners


def _exchange(sent: Tensor, to: list[int], from_: list[int]) -> list[Tensor]:
    """Send so many elements to each rank, and get what each has sent here."""
    received = sent.new_empty(sum(from_))
    dist.all_to_all_single(received, sent, from_, to)
    return list(received.split(from_))
