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

Every module reads its parameters only in its own `forward`, because ZeRO-3 gathers them there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bytelm.model.config import ModelConfig, StageConfig

T = TypeVar("T")

Groups = Sequence[tuple[int, int]]
"""(M, n) of each run of equally long segments, in the order in which they lie in S."""

Turn = tuple[Tensor, Tensor]
"""Cosine and sine of the angles of each position's channel pairs, [S, 1, c / 2] each."""


def turn_of(place: Tensor, channels: int) -> Turn:
    """The rotary embedding of arXiv 2104.09864: pair i turns by place * 10000^(-2 i / c).

    place [S]; in float64, so that far places stay exact.
    """
    pair = torch.arange(channels // 2, dtype=torch.float64, device=place.device)
    angles = place.double()[:, None, None] * 10_000.0 ** (-2.0 * pair / channels)  # [S, 1, c / 2]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """x [S, H, c], whose channel pairs (i, i + c / 2) are turned; at least in float32."""
    cos, sin = (part.to(torch.promote_types(x.dtype, torch.float32)) for part in turn)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, low * sin + high * cos], dim=-1)


class Past(Protocol):
    """What a layer sees of other positions: in training, or from a decoder's cache."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention, [S, H, c] to [S, H, c]."""

    def before(self, x: Tensor, sublayer: int) -> Tensor:
        """What x [S, ...] was at the position before in the sequence, zeros at its first.

        sublayer: 0 for attention, 1 for feed-forward, which a cache keeps apart.
        """


class SegmentPast:
    """Attention inside each segment; its cost is that of the segments run alone.

    first [S] bool: the positions that open a segment.
    """

    def __init__(self, groups: Groups, first: Tensor) -> None:
        self.groups = groups
        self.first = first

    def before(self, x: Tensor, sublayer: int) -> Tensor:
        return x.roll(1, 0).masked_fill(self.first[:, None], 0.0)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        sizes = [count * length for count, length in self.groups]
        parts = zip(*(each.split(sizes) for each in (queries, keys, values)), strict=True)
        outputs = []
        for (count, _), part in zip(self.groups, parts, strict=True):
            q, k, v = (rearrange(each, "(M n) H c -> M H n c", M=count) for each in part)
            output = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            outputs.append(rearrange(output, "M H n c -> (M n) H c"))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attention of q [M, H, n, c] to what is `visible` [M, 1, n, k] of k and v [M, H, k, c].

    PyTorch's kernel takes ten times as long to go back through a mask for n = 8 as plain products
    do (CPU, bf16); from about a hundred places on it is the faster one, and holds no scores.
    """
    if q.shape[2] > 64:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    shares = (scores * q.shape[-1] ** -0.5).masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return shares.to(v.dtype) @ v


class CrossPatchPast(SegmentPast):
    """Attention inside each of M sequences and to the last r positions of the one before.

    opens [M] bool: the sequences that open a document, which have none before.
    turn: the angle from a sequence to the one before, where keys are turned.
    carry [2, H, r, c]: the last keys and values before the first sequence; those of the last
        sequence once the layer has run.
    """

    def __init__(
        self,
        back: int,
        opens: Tensor,
        first: Tensor,
        turn: Turn | None,
        carry: Tensor | None,
    ) -> None:
        super().__init__([(len(opens), len(first) // len(opens))], first)
        self.back = back
        self.opens = opens
        self.turn = turn
        self.carry = carry

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (
            rearrange(each, "(M n) H c -> M H n c", M=len(self.opens))
            for each in (queries, keys, values)
        )
        n = q.shape[2]
        last = torch.stack([k[:, :, n - self.back :], v[:, :, n - self.back :]])  # [2, M, H, r, c]
        carry = torch.zeros_like(last[:, 0]) if self.carry is None else self.carry
        self.carry = last[:, -1]
        k_back, v_back = torch.cat([carry[:, None], last[:, :-1]], dim=1)  # [M, H, r, c]
        if self.turn is not None:
            k_back = rotate(k_back, self.turn).to(k.dtype)
        k, v = torch.cat([k_back, k], dim=2), torch.cat([v_back, v], dim=2)
        output = masked_attention(q, k, v, rearrange(self._visible(n), "M n k -> M 1 n k"))
        return rearrange(output, "M H n c -> (M n) H c")

    def _visible(self, n: int) -> Tensor:
        """[M, n, r + n] bool."""
        at = torch.arange(-self.back, n, device=self.opens.device)
        causal = at <= at[self.back :, None]  # [n, r + n]
        return causal & ~(self.opens[:, None, None] & (at < 0))


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

    def forward(self, x: Tensor, turn: Turn | None, past: Past) -> Tensor:
        """x [S, D] to [S, D]."""
        q, k, v = rearrange(self.qkv(x), "S (three H c) -> three S H c", three=3, H=self.heads)
        q, k = self.query_norm(q), self.key_norm(k)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        output = past.attend(q.to(v.dtype), k.to(v.dtype), v)
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
        self.token_shift = config.token_shift

    def forward(self, x: Tensor, turn: Turn | None, past: Past) -> Tensor:
        """x [S, D] to [S, D]."""
        attended = self.attention(self.shifted(self.attention_norm(x), past, 0), turn, past)
        x = x + self.dropout(attended)
        read = self.shifted(self.feed_forward_norm(x), past, 1)
        return x + self.dropout(self.feed_forward(read))

    def shifted(self, x: Tensor, past: Past, sublayer: int) -> Tensor:
        """x [S, D], its second half from the position before where tokens are shifted (RWKV)."""
        if not self.token_shift:
            return x
        own, moved = x.chunk(2, dim=-1)
        return torch.cat([own, past.before(moved, sublayer)], dim=-1)


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


class PatchEncoder(nn.Module):
    """Causal convolutions over bytes: h <- h + ReLU(W_f * h) for filters f of 3, 5 and 7.

    The paper names the filters and leaves the rest open. Zeros stand before a document's start
    and stay zeros, so that a window of the filters' reach gives what the whole document would.
    """

    FILTERS = (3, 5, 7)
    REACH = sum(size - 1 for size in FILTERS)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(width, width, f, bias=False) for f in self.FILTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of a patch and of the 12 bytes before it, [S, 12 + b, d], to [S, b, d]."""
        x = rearrange(x, "S b d -> S d b")
        for size, layer in zip(self.FILTERS, self.layers, strict=True):
            x = x[:, :, size - 1 :] + F.relu(layer(x))
        return rearrange(x, "S d b -> S b d")


class NgramEmbed(nn.Embedding):
    """Tables of the 2-, 3- and 4-grams before a position, found by hash (BLT, arXiv 2412.09871).

    An n-gram's row is its polynomial hash mod 2^31 - 1, mod the number of rows. One that would
    reach over the start of the document gives zeros.
    """

    LENGTHS = (2, 3, 4)
    _FACTOR = 1_540_483_477
    _PRIME = 2**31 - 1

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(len(self.LENGTHS) * rows, width)
        self.rows = rows

    def forward(self, before: Tensor) -> Tensor:
        """The ids before each position, [S, 4 or more], to [S, 3 * width]."""
        row = []
        for table, n in enumerate(self.LENGTHS):
            hashed = torch.zeros_like(before[:, 0])  # [S]
            for id_ in before[:, -n:].unbind(dim=1):
                hashed = (hashed * self._FACTOR + id_ + 1) % self._PRIME
            row.append(hashed % self.rows + table * self.rows)
        reaches = torch.stack([before[:, -n] for n in self.LENGTHS], dim=1) < 0  # [S, 3]
        embedded = super().forward(torch.stack(row, dim=1)).masked_fill(reaches[..., None], 0.0)
        return rearrange(embedded, "S n d -> S (n d)")


class Stage(nn.Module):
    """One stage of the hierarchy: embeddings of bytes, what the stage above says, and blocks.

    Stage 0 adds a position table to the embeddings; every other stage adds its slice of the
    parent's output through one shared matrix (w_GL in the paper). The last stage may add the
    n-grams before each position.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        shape = config.stages[index]
        self.bytes = config.position_bytes(index)
        byte_width = config.byte_width(index)
        joined = self.bytes * byte_width  # b * d
        self.recompute_layers = index == 0 and config.activation_checkpointing
        self.dropout = config.dropout
        self.channels = shape.width // shape.heads
        self.is_turned = config.rope
        self.places = config.patch_sizes[index - 1] if index else config.context // self.bytes
        self.back = min(config.cross_patch_attention, self.places) if index else 0
        self.window = self.reads = self.bytes
        self.patch_encoder = None
        if index == 0 and config.conv_patch_encoder:
            self.window = self.reads = self.bytes + PatchEncoder.REACH
            self.patch_encoder = PatchEncoder(byte_width)
        self.ngram_embed = None
        if config.ngram_rows and index == len(config.stages) - 1:
            self.window = max(NgramEmbed.LENGTHS)
            self.ngram_embed = NgramEmbed(config.ngram_rows, config.ngram_width)
            joined_grams = self.ngram_embed.embedding_dim * len(NgramEmbed.LENGTHS)
            self.ngram_in = nn.Linear(joined_grams, shape.width, bias=False)

        self.byte_embed = nn.Embedding(config.vocab_size, byte_width)
        self.start_embed = Start(shape.width)
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
        self, before: Tensor, place: Tensor, above: Tensor | None, pasts: Sequence[Past]
    ) -> Tensor:
        """The stage's output at each of S positions.

        before [S, window] int64: the ids before the position in its document, -1 where there are
            none; the last b of them are the position before.
        place [S] int64: the position's place in its sequence: a document for stage 0, a position
            of the parent for another stage.
        above [S, width of a slice]: the slice of the parent's output; None for stage 0.
        pasts: what each layer sees.

        Returns [S, D], or [S, b * d] where the stage's width is projected.
        """
        first = before[:, -1] < 0 if self.back else place == 0
        read = before[:, -self.reads :]
        x = self.byte_embed(read.clamp(min=0))  # [S, b and what the encoder reaches, d]
        if self.patch_encoder is not None:
            x = self.patch_encoder(x.masked_fill(read[..., None] < 0, 0.0))
        x = rearrange(x, "S b d -> S (b d)")
        if self.position_embed is not None:
            x = x + self.position_embed((place - 1).clamp(min=0))
        x = self.start_embed(self.patch_in(x), first)
        if self.ngram_embed is not None:
            x = x + self.ngram_in(self.ngram_embed(before))
        if self.parent is not None:
            x = x + self.parent(above)
        turn = self.turn(place)
        for block, past in zip(self.blocks, pasts, strict=True):
            if self.recompute_layers and torch.is_grad_enabled():
                x = recomputed(block, x, turn, past, dropout=self.dropout)
            else:
                x = block(x, turn, past)
        return self.patch_out(self.norm(x))

    def turn(self, place: Tensor) -> Turn | None:
        """The angles of positions at `place` [S], where the stage's keys are turned."""
        return turn_of(place, self.channels) if self.is_turned else None

    def cross_patch_pasts(
        self, opens: Tensor, first: Tensor, carry: Iterator[Tensor]
    ) -> list[CrossPatchPast]:
        """For each layer; `carry` gives theirs one after another, or none at all."""
        turn = self.turn(torch.tensor([-self.places], device=opens.device))
        return [
            CrossPatchPast(self.back, opens, first, turn, next(carry, None))
            for _ in range(len(self.blocks))
        ]


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


def recomputed(function: Callable[..., T], *inputs: object, dropout: float) -> T:
    """`function(*inputs)`, whose activations are computed again in the backward pass."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=dropout > 0.0)
