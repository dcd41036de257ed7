"""The layers of one stage: embeddings, pre-norm blocks, attention within segments.

Shapes:
    S   positions of a stage laid flat, segment after segment
    M   segments of one length
    n   positions of a segment
    D   width of the stage
    H   heads, each of c = D / H channels
    b   bytes in a position of the stage
    d   width of the embedding of one byte

Every module reads its parameters only in its own `forward`, because ZeRO-3 gathers them there.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bytelm.model.config import ModelConfig, StageConfig

Groups = Sequence[tuple[int, int]]
"""(M, n) of each run of equally long segments, in the order in which they lie in S."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer: queries, keys and values [S, H, c] to the output [S, H, c]."""

Turn = tuple[Tensor, Tensor]
"""Cosine and sine of the angles of each position's channel pairs, [S, 1, c / 2] each."""


def turn_of(place: Tensor, channels: int, dtype: torch.dtype) -> Turn:
    """The rotary embedding of arXiv 2104.09864: pair i turns by place * 10000^(-2 i / c).

    place [S]; the angles are float64 before they are cast, so that far places stay exact.
    """
    pair = torch.arange(channels // 2, dtype=torch.float64, device=place.device)
    angles = place.double()[:, None, None] * 10_000.0 ** (-2.0 * pair / channels)  # [S, 1, c / 2]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """x [S, H, c], whose channel pairs (i, i + c / 2) are turned."""
    cos, sin = turn
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, low * sin + high * cos], dim=-1)


def segment_attention(groups: Groups) -> Attend:
    """Causal attention inside each segment; its cost is that of the segments run alone."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        sizes = [count * length for count, length in groups]
        parts = zip(*(each.split(sizes) for each in (queries, keys, values)), strict=True)
        outputs = []
        for (count, _), part in zip(groups, parts, strict=True):
            q, k, v = (rearrange(each, "(M n) H c -> M H n c", M=count) for each in part)
            output = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            outputs.append(rearrange(output, "M H n c -> (M n) H c"))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return attend


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + 1e-5) * weight (arXiv 1910.07467), computed in the weight's type."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width]."""
        return super().forward(x.to(self.weight.dtype))


class Attention(nn.Module):
    """Multi-head attention with a fused projection; what attends to what is the caller's."""

    def __init__(self, config: ModelConfig, shape: StageConfig) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        channels = width // shape.heads
        self.query_norm = RMSNorm(channels) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(channels) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        """x [S, D] to [S, D]."""
        q, k, v = rearrange(self.qkv(x), "S (three H c) -> three S H c", three=3, H=self.heads)
        q, k = self.query_norm(q), self.key_norm(k)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        output = attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.output(rearrange(output, "S H c -> S (H c)"))


class SwiGLU(nn.Module):
    """silu(a) * b of the two halves of the channels (arXiv 2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [S, 2 h] to [S, h]."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class Block(nn.Module):
    """A pre-norm decoder block: attention, then a feed-forward layer."""

    def __init__(self, config: ModelConfig, shape: StageConfig) -> None:
        super().__init__()
        width, hidden = shape.width, 4 * shape.width
        activation: nn.Module = nn.ReLU()
        if config.gated_feed_forward:
            hidden, activation = -(-8 * width // 24) * 8, SwiGLU()  # 8/3 of the width, in eights
        gated = 2 if config.gated_feed_forward else 1
        self.attention_norm = norm(config, width)
        self.attention = Attention(config, shape)
        self.feed_forward_norm = norm(config, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, gated * hidden, bias=False),
            activation,
            nn.Linear(hidden, width, bias=False),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        """x [S, D] to [S, D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), turn, attend))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


def norm(config: ModelConfig, width: int) -> nn.Module:
    """The normalisation of a stage's channels."""
    return RMSNorm(width) if config.rms_norm else nn.LayerNorm(width)


class Start(nn.Module):
    """The trainable input of the first position of every segment."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        """x [S, D] with the start wherever `first` [S] is true."""
        return torch.where(first[:, None], self.weight, x)


class Stage(nn.Module):
    """One stage of the hierarchy: embeddings of bytes, what the stage above says, and blocks.

    Stage 0 adds a position table to the embeddings; every other stage adds its slice of the
    parent's output through one shared matrix (w_GL in the paper).
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        shape = config.stages[index]
        self.bytes = config.position_bytes(index)
        byte_width = config.byte_width(index)
        joined = self.bytes * byte_width  # b * d
        self.recompute_layers = index == 0 and config.activation_checkpointing
        self.dropout = config.dropout

        self.byte_embed = nn.Embedding(config.vocab_size, byte_width)
        self.start_embed = Start(shape.width)
        self.position_embed = None
        self.parent = None
        if index == 0:
            self.position_embed = nn.Embedding(config.context // self.bytes, joined)
        else:
            slice_width = self.bytes * config.byte_width(index - 1)
            self.parent = nn.Linear(slice_width, shape.width, bias=False)
        self.patch_in: nn.Module = nn.Identity()
        self.patch_out: nn.Module = nn.Identity()
        if config.is_projected(index):
            self.patch_in = nn.Linear(joined, shape.width, bias=False)
            self.patch_out = nn.Linear(shape.width, joined, bias=False)
        blocks = [Block(config, shape) for _ in range(shape.layers)]
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))
        self.norm = norm(config, shape.width)
        self.rope_channels = shape.width // shape.heads if config.rope else 0

    def forward(
        self, previous: Tensor, place: Tensor, above: Tensor | None, attends: Sequence[Attend]
    ) -> Tensor:
        """The stage's output at each of S positions.

        previous [S, b] int64: the bytes of the position before; anything at a first position.
        place [S] int64: the position's place in its sequence: a document for stage 0, a position
            of the parent for another stage. Place 0 takes the trainable start.
        above [S, width of a slice]: the slice of the parent's output; None for stage 0.
        attends: the attention of each layer.

        Returns [S, D], or [S, b * d] where the stage's width is projected.
        """
        x = rearrange(self.byte_embed(previous), "S b d -> S (b d)")
        if self.position_embed is not None:
            x = x + self.position_embed((place - 1).clamp(min=0))
        x = self.start_embed(self.patch_in(x), place == 0)
        if self.parent is not None:
            x = x + self.parent(above)
        turn = turn_of(place, self.rope_channels, x.dtype) if self.rope_channels else None
        for block, attend in zip(self.blocks, attends, strict=True):
            if self.recompute_layers and torch.is_grad_enabled():
                x = recomputed(block, x, turn, attend, dropout=self.dropout)
            else:
                x = block(x, turn, attend)
        return self.patch_out(self.norm(x))


def recomputed(function: Callable[..., Tensor], *inputs: object, dropout: float) -> Tensor:
    """`function(*inputs)`, whose activations are computed again in the backward pass."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=dropout > 0.0)
