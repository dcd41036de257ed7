"""Layers of a stage: norms, attention, feed-forward, blocks, and the output head by modality.

Shapes:
    S   positions of a stage laid flat, sequence after sequence
    D   width of the stage
    H   heads, each of c = D / H channels
    h   hidden width of the feed-forward layer
    V   vocabulary

Every module reads its parameters only in its own `forward`, because ZeRO-3 gathers them there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from bytelm.model.attention_context import AttentionContext
from bytelm.model.config import ModelConfig, StageConfig, feed_forward_width
from bytelm.model.region import Region
from bytelm.model.rope import RopeTable, apply_rope

T = TypeVar("T")


class UnitRMS(torch.autograd.Function):
    """x / sqrt(mean(x^2) + 1e-5) over the last dimension (RMSNorm without a weight, 1910.07467).

    Written by hand because PyTorch's takes four times as long for short vectors (CPU, bf16).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x [..., c] to [..., c]."""
        accum_dtype = torch.promote_types(x.dtype, torch.float32)
        square_sum = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=accum_dtype).square()
        scale = (square_sum / x.shape[-1] + 1e-5).rsqrt().to(x.dtype)
        output = x * scale
        ctx.save_for_backward(output, scale)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gradient of x: the part of `gradient` that is orthogonal to the output, scaled."""
        output, scale = ctx.saved_tensors
        projection = (gradient * output).mean(dim=-1, keepdim=True)
        return torch.addcmul(gradient, output, projection, value=-1.0).mul_(scale)


def unit_rms(x: Tensor) -> Tensor:
    """`UnitRMS` of x [..., c]; a compiler gets the formula, whose passes it fuses by itself."""
    if not torch.compiler.is_compiling():
        return UnitRMS.apply(x)
    mean_square = x.to(torch.promote_types(x.dtype, torch.float32)).square().mean(-1, keepdim=True)
    return x * (mean_square + 1e-5).rsqrt().to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + 1e-5) * weight (arXiv 1910.07467), computed in the weight's type."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] to [..., width]."""
        return super().forward(x.to(self.weight.dtype))


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The norm over the channels of a stage that the config asks for."""
    return RMSNorm(width) if config.rms_norm else nn.LayerNorm(width)


class Attention(nn.Module):
    """Multi-head attention with a fused projection to queries, keys and values."""

    def __init__(self, config: ModelConfig, stage: StageConfig) -> None:
        super().__init__()
        self.heads = stage.heads
        self.qkv = nn.Linear(stage.width, 3 * stage.width, bias=False)
        self.output = nn.Linear(stage.width, stage.width, bias=False)
        self.scale = (stage.width // stage.heads) ** -0.5
        self.norm_gain = Gain(stage.heads) if config.qk_norm else None

    def project(self, x: Tensor, rope: RopeTable | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values of x [S, D], [S, H, c] each."""
        qkv = rearrange(self.qkv(x), "S (h c) -> S h c", h=3 * self.heads)
        qk, v = qkv.split([2 * self.heads, self.heads], dim=1)
        if self.norm_gain is not None:
            qk = unit_rms(qk)
        if rope is not None:
            qk = apply_rope(qk, rope)
        q, k = qk.chunk(2, dim=1)
        if self.norm_gain is not None:
            q = self.norm_gain(q)
        return q * self.scale, k, v

    def merge(self, attended: Tensor) -> Tensor:
        """Output [S, D] of what the heads attended to, [S, H, c]."""
        return self.output(rearrange(attended, "S H c -> S (H c)"))


class Gain(nn.Module):
    """One trainable factor for each head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all factors to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x [S, H, c] to [S, H, c]."""
        return x * self.weight.to(x.dtype)[:, None]


class SwiGLU(nn.Module):
    """silu(gate) * value of the two halves of the channels (arXiv 2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [S, 2 h] to [S, h]."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class Block(nn.Module):
    """Pre-norm decoder block: attention, then a feed-forward layer."""

    def __init__(self, config: ModelConfig, stage: StageConfig) -> None:
        super().__init__()
        width, hidden = stage.width, feed_forward_width(stage.width, config.swiglu)
        self.attention_norm = make_norm(config, width)
        self.attention = Attention(config, stage)
        self.feed_forward_norm = make_norm(config, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * hidden if config.swiglu else hidden, bias=False),
            SwiGLU() if config.swiglu else nn.ReLU(),
            nn.Linear(hidden, width, bias=False),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.before_attention = Region(Block._before_attention)
        self.after_attention = Region(Block._after_attention)

    def forward(self, x: Tensor, rope: RopeTable | None, context: AttentionContext) -> Tensor:
        """x [S, D] to [S, D]; `context` decides which positions attend to which."""
        # q, k and v have no names here, so that they are gone when the feed-forward begins.
        attended = context.attend(*self.before_attention(self, x, rope))
        return self.after_attention(self, x, attended)

    def _before_attention(self, x: Tensor, rope: RopeTable | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values of x [S, D], [S, H, c] each."""
        return self.attention.project(self.attention_norm(x), rope)

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output [S, D] for the input x [S, D] and what its heads attended to, [S, H, c]."""
        x = x + self.dropout(self.attention.merge(attended))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class ModalityHead(nn.Module):
    """An output matrix for each modality, all of them in one parameter.

    All matrices belong to one module, which always runs: under ZeRO-3 all ranks must gather the
    same parameters, whatever modalities their rows have.
    """

    def __init__(self, width: int, vocab_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(heads * vocab_size, width))

    def forward(self, hidden: Tensor, modality: Tensor) -> Tensor:
        """hidden [S, D] and the head of each position, modality [S] int64, to logits [S, V]."""
        if hidden.is_cuda:
            # Rows cannot be sorted by modality without waiting for their counts, and the products
            # of all heads are a small part of a step.
            logits = F.linear(hidden, self.weight)
            by_head = rearrange(logits, "S (m V) -> S m V", m=self.heads)
            return by_head.take_along_dim(modality[:, None, None], dim=1).squeeze(1)
        weights = self.weight.chunk(self.heads)
        linears = [partial(F.linear, weight=weight) for weight in weights]
        return linear_by_modality(hidden, modality, linears)


def linear_by_modality(
    hidden: Tensor, modality: Tensor, linears: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """Apply to each row of hidden [S, D] the linear map of its modality [S] int64."""
    order = modality.argsort(stable=True)
    counts = modality.bincount(minlength=len(linears)).tolist()
    parts = zip(linears, hidden[order].split(counts), strict=True)
    output = torch.cat([linear(part) for linear, part in parts if len(part)])
    return output[order.argsort()]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats [S] of the ids `targets` [S] under logits [S, V], at least in float32."""
    accum_dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(accum_dtype), targets, reduction="none")


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Type of a matrix product with `weight`: that of autocast, or else its own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def checkpointed(function: Callable[..., T], *inputs: object, dropout: float) -> T:
    """`function(*inputs)`, with its activations recomputed in the backward pass."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=dropout > 0.0)
