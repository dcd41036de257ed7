"""The layers of one stage: embeddings, pre-norm blocks, attention within segments.

Shapes:
    S   positions of a stage laid flat, segment after segment
    M   segments of one length
    n   positions of a segment
    r   positions that are seen of the sequence before
    D   width of the stage
    H   heads, each of c = D / H channels
    b   bytes in a position of the stage
    d   width of the embedding of one byte
    V   vocabulary               J   hints of an id

Every module reads its parameters only in its own `forward`, because ZeRO-3 gathers them there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from bytelm.model.attention_context import AttentionContext, CrossPatchContext
from bytelm.model.codec_features.layout import FEATURES
from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.embeddings import (
    FEATURE_WIDTH,
    FeatureEmbed,
    NgramEmbed,
    PatchEncoder,
    StartEmbedding,
)
from bytelm.model.rope import RopeTable, apply_rope, rope_cos_sin

T = TypeVar("T")


class UnitRMS(torch.autograd.Function):
    """x / sqrt(mean(x^2) + 1e-5) over the last dimension (arXiv 1910.07467, without a weight).

    By hand, since PyTorch's takes four times as long for short vectors (CPU, bf16).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact).square()
        scale = (square / x.shape[-1] + 1e-5).rsqrt().to(x.dtype)
        output = x * scale
        ctx.save_for_backward(output, scale)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        output, scale = ctx.saved_tensors
        along = (gradient * output).mean(dim=-1, keepdim=True)
        return torch.addcmul(gradient, output, along, value=-1.0).mul_(scale)


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
        self.scale = (width // shape.heads) ** -0.5
        self.norm_gain = Gain(shape.heads) if config.qk_norm else None

    def forward(self, x: Tensor, rope: RopeTable | None, context: AttentionContext) -> Tensor:
        """x [S, D] to [S, D]."""
        qkv = rearrange(self.qkv(x), "S (h c) -> S h c", h=3 * self.heads)
        qk, v = qkv.split([2 * self.heads, self.heads], dim=1)
        if self.norm_gain is not None:
            qk = UnitRMS.apply(qk)
        if rope is not None:
            qk = apply_rope(qk, rope)
        q, k = qk.chunk(2, dim=1)
        if self.norm_gain is not None:
            q = self.norm_gain(q)
        output = context.attend(q * self.scale, k, v)
        return self.output(rearrange(output, "S H c -> S (H c)"))


class Gain(nn.Module):
    """One trainable factor for each head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads))

    def forward(self, x: Tensor) -> Tensor:
        """x [S, H, c]."""
        return x * self.weight.to(x.dtype)[:, None]


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
        if config.swiglu:
            hidden, activation = -(-8 * width // 24) * 8, SwiGLU()  # 8/3 of the width, in eights
        gated = 2 if config.swiglu else 1
        self.attention_norm = norm(config, width)
        self.attention = Attention(config, shape)
        self.feed_forward_norm = norm(config, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, gated * hidden, bias=False),
            activation,
            nn.Linear(hidden, width, bias=False),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope: RopeTable | None, context: AttentionContext) -> Tensor:
        """x [S, D] to [S, D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rope, context))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


def norm(config: ModelConfig, width: int) -> nn.Module:
    """The normalisation of a stage's channels."""
    return RMSNorm(width) if config.rms_norm else nn.LayerNorm(width)


class Stage(nn.Module):
    """One stage of the hierarchy: embeddings of bytes, what the stage above says, and blocks.

    Stage 0 adds a position table to the embeddings; every other stage adds its slice of the
    parent's output through one shared matrix (w_GL in the paper). The last stage may add the
    n-grams before each position, and its hints.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        shape = config.stages[index]
        self.bytes = config.position_bytes(index)
        byte_width = config.byte_width(index)
        joined = self.bytes * byte_width  # b * d
        self.checkpoint_layers = index == 0 and config.activation_checkpointing
        self.dropout = config.dropout
        self.channels = shape.width // shape.heads
        self.uses_rope = config.rope
        self.places = config.patch_sizes[index - 1] if index else config.context // self.bytes
        self.back = min(config.cross_patch_attention, self.places) if index else 0
        self.attention_window = 0 if index else config.attention_window
        self.window = self.reads = self.bytes
        self.patch_encoder = None
        if index == 0 and config.conv_patch_encoder:
            self.window = self.reads = self.bytes + PatchEncoder.REACH
            self.patch_encoder = PatchEncoder(byte_width)
        self.ngram_embed = None
        if config.ngram_table_size and index == len(config.stages) - 1:
            self.window = max(NgramEmbed.LENGTHS)
            self.ngram_embed = NgramEmbed(config.ngram_table_size, config.ngram_width)
            joined_grams = self.ngram_embed.embedding_dim * len(NgramEmbed.LENGTHS)
            self.ngram_in = nn.Linear(joined_grams, shape.width, bias=False)
        self.feature_embed = None
        if config.codec_features and index == len(config.stages) - 1:
            self.feature_embed = FeatureEmbed()
            self.feature_in = nn.Linear(FEATURES * FEATURE_WIDTH, shape.width, bias=False)

        self.byte_embed = nn.Embedding(config.vocab_size, byte_width)
        self.start_embed = StartEmbedding(shape.width)
        self.position_embed = None
        self.parent = None
        if index == 0:
            self.position_embed = nn.Embedding(self.places, joined)
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

    def forward(
        self,
        before: Tensor,
        place: Tensor,
        codec_features: Tensor | None,
        above: Tensor | None,
        contexts: Sequence[AttentionContext],
    ) -> Tensor:
        """The stage's output at each of S positions.

        before [S, window], place [S], hints [S, J]: see `own_input`.
        above [S, width of a slice]: the slice of the parent's output; None for stage 0.
        pasts: what each layer sees.

        Returns [S, D], or [S, b * d] where the stage's width is projected.
        """
        x = self.own_input(before, place, codec_features)
        if self.parent is not None:
            x = x + self.parent(above)
        rope = self.rope(place)
        for block, context in zip(self.blocks, contexts, strict=True):
            if self.checkpoint_layers and torch.is_grad_enabled():
                x = checkpointed(block, x, rope, context, dropout=self.dropout)
            else:
                x = block(x, rope, context)
        return self.patch_out(self.norm(x))

    def own_input(self, before: Tensor, place: Tensor, codec_features: Tensor | None) -> Tensor:
        """The input of each of S positions but for what the stage above says, [S, D].

        before [S, window] int64: the ids before the position in its document, -1 where there are
            none; the last b of them are the position before.
        place [S] int64: the position's place in its document.
        hints [S, J]: of the position, for a last stage that reads them.
        """
        first = before[:, -1] < 0 if self.back else self.first(place)
        read = before[:, -self.reads :]
        x = self.byte_embed(read.clamp(min=0))  # [S, b and what the encoder reaches, d]
        if self.patch_encoder is not None:
            x = self.patch_encoder(x.masked_fill(read[..., None] < 0, 0.0))
        x = rearrange(x, "S b d -> S (b d)")
        if self.position_embed is not None:
            x = x + self.position_embed((place - 1).clamp(min=0))
        x = self.start_embed(self.patch_in(x), first)
        if self.ngram_embed is not None:
            known = codec_features if self.feature_embed is not None else None
            x = x + self.ngram_in(self.ngram_embed(before, known))
        if self.feature_embed is not None:
            assert codec_features is not None
            x = x + self.feature_in(self.feature_embed(codec_features))
        return x

    def first(self, place: Tensor) -> Tensor:
        """Which of the positions at `place` [S] open a sequence of the stage: a document for
        stage 0, else a position of the parent."""
        return place == 0 if self.parent is None else place % self.places == 0

    def rope(self, place: Tensor) -> RopeTable | None:
        """The angles of positions at `place` [S], where the stage's keys are turned."""
        if not self.uses_rope:
            return None
        return rope_cos_sin(place, self.channels, compute_dtype(self.byte_embed.weight))

    def cross_patch_contexts(
        self, opens: Tensor, carry: Iterator[Tensor]
    ) -> list[CrossPatchContext]:
        """For each layer; `carry` gives theirs one after another, or none at all."""
        weight = self.byte_embed.weight
        heads, dtype = self.blocks[0].attention.heads, compute_dtype(weight)
        rooms = (
            weight.new_empty(2, heads, self.back, self.channels, dtype=dtype) for _ in self.blocks
        )
        return [
            CrossPatchContext(opens, self.places, next(carry, None), room) for room in list(rooms)
        ]


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The type of a matrix product with `weight`: autocast's, or its own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class ModalityHead(nn.Module):
    """An output matrix for each modality, all in one parameter.

    One module that always runs, since under ZeRO-3 all ranks must gather the same parameters
    whatever modalities their rows have.
    """

    def __init__(self, width: int, vocab_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(heads * vocab_size, width))

    def forward(self, hidden: Tensor, modality: Tensor) -> Tensor:
        """hidden [S, D] and the head of each place, modality [S] int64, to logits [S, V]."""
        weights = self.weight.chunk(self.heads)
        order = modality.argsort(stable=True)
        counts = modality.bincount(minlength=self.heads).tolist()
        parts = zip(hidden[order].split(counts), weights, strict=True)
        logits = torch.cat([F.linear(part, weight) for part, weight in parts])
        return logits[order.argsort()]


def checkpointed(function: Callable[..., T], *inputs: object, dropout: float) -> T:
    """`function(*inputs)`, whose activations are computed again in the backward pass."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=dropout > 0.0)
