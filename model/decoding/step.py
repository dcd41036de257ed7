"""One stage of the model for one new position of each row, with nothing left to do beforehand.

Shapes:
    B   rows of the decoder      R   rows that a stage advances
    b   bytes in a position of the stage
    m   places in a sequence of the stage: a row for stage 0, else a position of its parent
    n   places that are looked at
    r   places that are seen of the sequence before
    D   width of the stage       H   heads of c channels
    p   slices of d channels in an output of a stage, one for each place of the stage below

The equations are those of `layers.py`. Weights are cast and laid out once, products with them read
memory in order, what is always the same is looked up, and rows that stand at one place need no
indices.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.model.layers import Block, RMSNorm, Stage
from bytelm.model.rope import RopeTable, apply_rope, rope_cos_sin

ALIKE_ROWS = 8
"""Up to so many rows are given, in fp32 on a CPU, what each of them is given alone."""
CACHED = 2**24
"""Bytes of weights that stay in the processor's cache from one byte of a row to the next."""
PARTS = 4
"""Slices of a weight that meets one row; measured on two threads, where more gain nothing."""
PACKED_ROWS = 64
"""Rows for which a weight is packed, whatever their number: another layout would round otherwise,
and what is packed for one row is slow for eight."""
INPUTS = 1024
"""The most inputs at which oneDNN's fp32 product of one row adds them up as that of several."""
TURNS = 4096
"""Places whose angles are made at once."""


class PackedLinear:
    """Products of few rows with one weight, in `dtype`; other types are cast.

    On a CPU, oneDNN packs the weight in the order in which its kernel reads it: cold weights come
    in at three times the speed. In fp32 a row of the product is then the same alone and among
    others, to the last bit, which PyTorch's own products of few rows do not give. Its calls cost
    10 us more than plain ones.

    row_by_row: in fp32 on a CPU, for few rows and small weights that are still in the processor's
        cache from the last row: each row is a batch of PARTS products with slices of the weight,
        which runs on all threads, where a product runs on one.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, *, row_by_row: bool = False) -> None:
        self.dtype = dtype
        weight = weight.detach().to(dtype)
        on_cpu = weight.device.type == "cpu"
        self.is_cut = row_by_row and on_cpu and dtype == torch.float32
        self.is_packed = on_cpu and _can_pack(dtype) and not self.is_cut
        if self.is_cut:
            self.weight: Tensor = weight.reshape(math.gcd(PARTS, len(weight)), -1, weight.shape[1])
        elif self.is_packed:
            pack = torch.ops.mkldnn._reorder_linear_weight.default
            self.weight = pack(weight.contiguous(), PACKED_ROWS)
            self.product = torch.ops.mkldnn._linear_pointwise.default
            self.is_doubled = dtype == torch.float32 and weight.shape[1] > INPUTS
        else:
            self.weight = weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """x [R, inputs] to [R, outputs], in `dtype`."""
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if self.is_cut:
            return self._row(x) if len(x) == 1 else torch.cat([self._row(y) for y in x.split(1)])
        if not self.is_packed:
            return torch.mm(x, self.weight)
        rows = len(x)
        if rows == 1 and self.is_doubled:
            x = x.repeat(2, 1)
        product: Tensor = self.product(x, self.weight, None, "none", [], "")
        return product[:rows]

    def _row(self, x: Tensor) -> Tensor:
        return torch.bmm(self.weight, x.t().expand(len(self.weight), -1, -1)).view(1, -1)


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _norm_of(module: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The norm of a stage's channels, with its weights in `dtype`."""
    if isinstance(module, RMSNorm):
        weight = module.weight.detach().to(dtype)
        return partial(F.rms_norm, normalized_shape=weight.shape, weight=weight, eps=module.eps)
    assert isinstance(module, nn.LayerNorm)
    weight, bias = (each.detach().to(dtype) for each in (module.weight, module.bias))
    shape, eps = weight.shape, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


class Rows(Protocol):
    """Which rows of a stage are given a new place, where it lies, and what it sees."""

    def attend(self, layer: "CachedBlock", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Takes up keys and values and attends, [R, H, c] each; returns [R, D]."""


class AlignedRows:
    """All rows, at the same `place` of a sequence.

    opens: whether the sequence is the row's first, which has none before.
    """

    def __init__(self, stage: "CachedStage", place: int, opens: bool) -> None:
        self.slot = stage.back + place
        low = max(stage.back if opens else 0, self.slot + 1 - stage.window)
        self.seen = slice(low, self.slot + 1)
        self.copies = slice(stage.places, None) if place == 0 and stage.back else None

    def attend(self, layer: "CachedBlock", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend_in(layer.keys, layer.values, q, k, v)

    def attend_in(self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend`, given the caches [R H, r + m, c] of the rows."""
        if self.copies is not None:
            back = self.slot  # r
            keys[:, :back] = keys[:, self.copies]
            values[:, :back] = values[:, self.copies]
        keys.select(1, self.slot).copy_(k.flatten(0, 1))
        values.select(1, self.slot).copy_(v.flatten(0, 1))
        keys, values = keys[:, self.seen], values[:, self.seen]
        q = q.reshape(-1, 1, q.shape[-1]).to(keys.dtype)  # [R H, 1, c]
        shares = torch.bmm(q, keys.mT).softmax(-1)  # [R H, 1, n]
        return torch.bmm(shares, values).view(len(k), -1)


class RaggedRows:
    """Some `rows`, each at a place of its own; slower, since they attend one after another."""

    def __init__(
        self,
        stage: "CachedStage",
        rows: Sequence[int],
        places: Sequence[int],
        opens: Sequence[bool],
    ) -> None:
        self.rows = rows
        each = zip(places, opens, strict=True)
        self.alone = [AlignedRows(stage, place, is_first) for place, is_first in each]

    def attend(self, layer: "CachedBlock", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = []
        for at, (row, alone) in enumerate(zip(self.rows, self.alone, strict=True)):
            own = slice(at, at + 1)
            keys, values = layer.of_row(row)
            attended.append(alone.attend_in(keys, values, q[own], k[own], v[own]))
        return torch.cat(attended)


class CachedBlock:
    """A block for one new place of rows, with keys and values of the places before.

    keys, values [B H, r + m, c]: r of the sequence before, then its own.
    """

    def __init__(
        self,
        block: Block,
        batch: int,
        slots: int,
        back: int,
        matrix: Callable[[Tensor], PackedLinear],
    ) -> None:
        attention, (up, activation, down) = block.attention, block.feed_forward
        assert isinstance(up, nn.Linear)
        assert isinstance(down, nn.Linear)
        weight, gain = attention.qkv.weight.detach().clone(), attention.norm_gain
        width, self.heads, self.back = weight.shape[1], attention.heads, back
        self.channels = width // self.heads
        exact = torch.promote_types(weight.dtype, torch.float32)
        self.factor = None
        if gain is None:
            weight[:width] *= attention.scale
        else:
            of_queries = gain.weight.detach().to(exact) * attention.scale
            self.factor = torch.cat([of_queries, torch.ones_like(of_queries)])[:, None]  # [2 H, 1]
        self.qkv, self.output = matrix(weight), matrix(attention.output.weight)
        self.up, self.down = matrix(up.weight), matrix(down.weight)
        self.activation = torch.relu_ if isinstance(activation, nn.ReLU) else activation.forward
        self.attention_norm = _norm_of(block.attention_norm, exact)
        self.feed_forward_norm = _norm_of(block.feed_forward_norm, exact)
        # PyTorch's products of one query in bf16 take four times as long on a CPU.
        dtype = exact if weight.device.type == "cpu" else self.qkv.dtype
        shape = (batch * self.heads, slots, self.channels)
        self.keys, self.values = weight.new_zeros(2, *shape, dtype=dtype)

    def of_row(self, row: int) -> tuple[Tensor, Tensor]:
        """The row's part of keys and values, [H, r + m, c]."""
        heads = slice(row * self.heads, (row + 1) * self.heads)
        return self.keys[heads], self.values[heads]

    def __call__(self, x: Tensor, rope: RopeTable | None, to: Rows) -> Tensor:
        """x [R, D] to [R, D]."""
        h = self.heads
        qkv = (
            self.qkv(self.attention_norm(x)).to(self.keys.dtype).view(len(x), 3 * h, self.channels)
        )
        qk = qkv.narrow(1, 0, 2 * h)
        if self.factor is not None:
            qk = F.rms_norm(qk, qk.shape[-1:], eps=1e-5) * self.factor
        if rope is not None:
            qk = apply_rope(qk, rope)
        q, k = qk.chunk(2, dim=1)
        attended = to.attend(self, q, k, qkv.narrow(1, 2 * h, h))
        x = x + self.output(attended)
        return x + self.down(self.activation(self.up(self.feed_forward_norm(x))))


class CachedStage:
    """A stage for one new position of rows.

    places: m, the places of a sequence that the caches hold.
    above [B, m, D]: what the output of the stage above says at each place of the sequence.
    """

    def __init__(self, stage: Stage, batch: int, places: int, dtype: torch.dtype) -> None:
        self.stage, self.bytes, self.back, self.places = stage, stage.bytes, stage.back, places
        self.window = stage.attention_window or stage.back + places  # positions that one sees
        numbers = sum(each.numel() for block in stage.blocks for each in block.parameters())
        is_cold = stage.bytes > 1 or dtype.itemsize * numbers > CACHED
        row_by_row = batch <= ALIKE_ROWS and not is_cold
        matrix = partial(PackedLinear, dtype=dtype, row_by_row=row_by_row)
        self.layers = [
            CachedBlock(block, batch, stage.back + places, stage.back, matrix)
            for block in stage.blocks
        ]
        weight = stage.start_embed.weight.detach()
        self.norm = _norm_of(stage.norm, torch.promote_types(weight.dtype, torch.float32))
        self.start = weight.expand(batch, -1)
        linear = {
            name: matrix(module.weight, row_by_row=row_by_row and name != "parent")
            for name, module in stage.named_children()
            if isinstance(module, nn.Linear)
        }  # the parent is asked for all places of a sequence at once
        self.parent, self.patch_out = linear.get("parent"), linear.get("patch_out")
        self.ngram_in, self.feature_in = linear.get("ngram_in"), linear.get("feature_in")
        self.is_rowwise = stage.patch_encoder is None and "patch_in" not in linear
        self.above = weight.new_empty(batch, places, len(weight), dtype=dtype)
        self._turns: tuple[int, Tensor, Tensor] | None = None

    def advance(
        self, own: Tensor, above: Tensor | None, rope: RopeTable | None, to: Rows
    ) -> Tensor:
        """The output [R, D] (or [R, b * d]) at the new positions of the rows `to`.

        own [R, D]: the input but for `above`, [R, D].
        """
        x = own if above is None else own + above
        for layer in self.layers:
            x = layer(x, rope, to)
        x = self.norm(x)
        return x if self.patch_out is None else self.patch_out(x)

    def spread(self, output: Tensor) -> Tensor:
        """The output [R, p * d] of the stage above to what it says at each place, [R, p, D]."""
        assert self.parent is not None
        said = self.parent(output.reshape(len(output) * self.places, -1))
        return said.view(len(output), self.places, -1)

    def own_input(self, before: Tensor, place: int, codec_features: Tensor | None) -> Tensor:
        """As `Stage.own_input`, of rows at one place: [R, window] and hints [R, J] to [R, D]."""
        stage = self.stage
        if stage.bytes > 1:
            # Convolutions and plain products of several rows would round otherwise.
            parts = [before] if self.is_rowwise else before.split(1)
            inputs = [
                stage.own_input(part, part.new_full((len(part),), place), codec_features)
                for part in parts
            ]
            return inputs[0] if len(inputs) == 1 else torch.cat(inputs)
        if place % self.places == 0 and not self.back:
            x = self.start[: len(before)]
        else:
            x = F.embedding(before[:, -1], stage.byte_embed.weight)
        if stage.position_embed is not None:
            x = x + stage.position_embed.weight[place - 1]
        if stage.ngram_embed is not None and self.ngram_in is not None:
            x = x + self.ngram_in(stage.ngram_embed(before, codec_features))
        if stage.feature_embed is not None and self.feature_in is not None:
            assert codec_features is not None
            x = x + self.feature_in(stage.feature_embed(codec_features))
        return x

    def rope(self, place: int) -> RopeTable | None:
        """As `Stage.turn`, of one place."""
        if not self.stage.uses_rope:
            return None
        block, at = divmod(place, TURNS)
        if self._turns is None or self._turns[0] != block:
            keys = self.layers[0].keys
            places = torch.arange(block * TURNS, (block + 1) * TURNS, device=keys.device)
            self._turns = (block, *rope_cos_sin(places, self.stage.channels, keys.dtype))
        _, cos, sin = self._turns
        return cos[at], sin[at]
