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

from bytelm.model.config import ModelConfig

Groups = Sequence[tuple[int, int]]
"""(M, n) of each run of equally long segments, in the order in which they lie in S."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer: queries, keys and values [S, H, c] to the output [S, H, c]."""


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


class Attention(nn.Module):
    """Multi-head attention with a fused projection; what attends to what is the caller's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """x [S, D] to [S, D]."""
        q, k, v = rearrange(self.qkv(x), "S (three H c) -> three S H c", three=3, H=self.heads)
        return self.output(rearrange(attend(q, k, v), "S H c -> S (H c)"))


class Block(nn.Module):
    """A pre-norm decoder block: attention, then a ReLU feed-forward four times as wide."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.ReLU(),
            nn.Linear(4 * width, width, bias=False),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """x [S, D] to [S, D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), attend))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


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
        blocks = [Block(shape.width, shape.heads, config.dropout) for _ in range(shape.layers)]
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(shape.width)

    def forward(
        self, previous: Tensor, first: Tensor, above: Tensor, attends: Sequence[Attend]
    ) -> Tensor:
        """The stage's output at each of S positions.

        previous [S, b] int64: the bytes of the position before; anything at a first position.
        first [S] bool: the positions that open a segment and take the trainable start.
        above: for stage 0 the position's place in its document, [S] int64; for another stage its
            slice of the parent's output, [S, width of a slice].
        attends: the attention of each layer.

        Returns [S, D], or [S, b * d] where the stage's width is projected.
        """
        x = rearrange(self.byte_embed(previous), "S b d -> S (b d)")
        if self.position_embed is not None:
            x = x + self.position_embed((above - 1).clamp(min=0))
        x = self.start_embed(self.patch_in(x), first)
        if self.parent is not None:
            x = x + self.parent(above)
        for block, attend in zip(self.blocks, attends, strict=True):
            if self.recompute_layers and torch.is_grad_enabled():
                x = recomputed(block, x, attend, dropout=self.dropout)
            else:
                x = block(x, attend)
        return self.patch_out(self.norm(x))


def recomputed(function: Callable[..., Tensor], *inputs: object, dropout: float) -> Tensor:
    """`function(*inputs)`, whose activations are computed again in the backward pass."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=dropout > 0.0)
