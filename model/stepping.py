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
indices and no mask.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from bytelm.model.layers import Block, RMSNorm, Stage, Turn, rotate, turn_of

FEW = 4
"""Rows from which on a packed matrix is the faster one whatever its size."""
LARGE = 2**19
"""Elements from which on a packed matrix is the faster one at any number of rows."""
CACHED = 2**24
"""Bytes of weights that stay in the processor's cache from one byte of a row to the next."""
PARTS = 4
"""Slices of a weight that meets one row; measured on two threads, where more gain nothing."""
PACKED_ROWS = 64
"""Rows for which a weight is packed, if not more: what is packed for one row is slow for eight."""
TURNS = 4096
"""Places whose angles are made at once."""


class Matrix:
    """Products of few rows with one weight, in `dtype`; other types are cast.

    On a CPU, oneDNN packs the weight in the order in which its kernel reads it: cold weights come
    in at three times the speed. Its calls cost 10 us more than those of plain products, which are
    better for small weights that are still in the processor's cache from the last row. With one
    row these are a batch of PARTS products with slices of the weight: that runs on all threads,
    where a product runs on one.

    rows: how many a product has at most.
    is_cold: whether the weight has left the cache when it is used again.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, rows: int, *, is_cold: bool) -> None:
        self.dtype = dtype
        weight = weight.detach().to(dtype)
        on_cpu = weight.device.type == "cpu"
        is_worth_it = dtype == torch.bfloat16 or is_cold or rows >= FEW or weight.numel() >= LARGE
        self.is_cut = on_cpu and rows == 1 and dtype == torch.float32 and not is_cold
        self.is_packed = on_cpu and _can_pack(dtype) and is_worth_it and not self.is_cut
        if self.is_cut:
            parts = math.gcd(PARTS, len(weight))
            self.weight: Tensor = weight.reshape(parts, -1, weight.shape[1])
        elif self.is_packed:
            pack = torch.ops.mkldnn._reorder_linear_weight.default
            self.weight = pack(weight.contiguous(), max(rows, PACKED_ROWS))
            self.product = torch.ops.mkldnn._linear_pointwise.default
        else:
            self.weight = weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """x [R, inputs] to [R, outputs], in `dtype`."""
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if self.is_cut:
            return torch.bmm(self.weight, x.t().expand(len(self.weight), -1, -1)).view(1, -1)
        if self.is_packed:
            product: Tensor = self.product(x, self.weight, None, "none", [], "")
            return product
        return torch.mm(x, self.weight)

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        """y [R, outputs] plus the product with x [R, inputs], in y's type."""
        if self.is_packed or self.is_cut or not y.dtype == x.dtype == self.dtype:
            return y + self(x)
        return torch.addmm(y, x, self.weight)


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

    bias: Tensor | None
    """[R * H or 1, 1, n]: 0 where a place is seen, -inf where not; None where all are."""

    def append(self, layer: "LayerStep", keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes up keys and values [R, H, c]; returns those that are seen, [R * H, n, c] each."""

    def before(self, layer: "LayerStep", x: Tensor, sublayer: int) -> Tensor:
        """What x [R, D / 2] was at the place before in the sequence, zeros at its first."""


class RowsTogether:
    """All rows, at the same `place` of a sequence.

    opens: whether the sequence is the row's first, which has none before.
    """

    bias: Tensor | None = None

    def __init__(self, stage: "StageStep", place: int, opens: bool) -> None:
        self.is_first = place == 0
        self.slot = stage.back + place
        self.low = max(stage.back if opens else 0, self.slot + 1 - stage.window)
        self.copies = slice(stage.places, None) if self.is_first and stage.back else None

    def append(self, layer: "LayerStep", keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.copies is not None:
            layer.keys[:, :, : layer.back] = layer.keys[:, :, self.copies]
            layer.values[:, :, : layer.back] = layer.values[:, :, self.copies]
        layer.keys.select(2, self.slot).copy_(keys)
        layer.values.select(2, self.slot).copy_(values)
        n = self.slot + 1 - self.low
        return layer.flat_keys.narrow(1, self.low, n), layer.flat_values.narrow(1, self.low, n)

    def before(self, layer: "LayerStep", x: Tensor, sublayer: int) -> Tensor:
        kept = layer.shifted[sublayer]
        layer.shifted[sublayer] = x
        return torch.zeros_like(x) if self.is_first else kept


class RowsApart:
    """Some `rows`, each at a place of its own; slower."""

    def __init__(
        self, stage: "StageStep", rows: Sequence[int], places: Sequence[int], opens: Sequence[bool]
    ) -> None:
        keys, back = stage.layers[0].keys, stage.back
        self.begins = [row for row, place in zip(rows, places, strict=True) if place == 0 and back]
        self.copies = slice(stage.places, None)
        self.rows = torch.tensor(rows, device=keys.device)
        self.first = torch.tensor(places, device=keys.device) == 0
        self.slots = torch.tensor(places, device=keys.device) + back
        lowest = [
            max(back if is_first else 0, back + place + 1 - stage.window)
            for is_first, place in zip(opens, places, strict=True)
        ]
        self.seen = slice(min(lowest), back + max(places) + 1)
        slot = torch.arange(self.seen.start, self.seen.stop, device=keys.device)
        low = torch.tensor(lowest, device=keys.device)[:, None]
        hidden = (slot < low) | (slot > self.slots[:, None])  # [R, n]
        bias = torch.zeros(hidden.shape, dtype=keys.dtype, device=keys.device)
        bias.masked_fill_(hidden, -torch.inf)
        self.bias: Tensor | None = repeat(bias, "R n -> (R H) 1 n", H=keys.shape[1])

    def append(self, layer: "LayerStep", keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        seen = []
        for cache, new in ((layer.keys, keys), (layer.values, values)):
            if self.begins:
                cache[self.begins, :, : layer.back] = cache[self.begins, :, self.copies]
            cache[self.rows, :, self.slots] = new.to(cache.dtype)
            seen.append(rearrange(cache[self.rows, :, self.seen], "R H n c -> (R H) n c"))
        return seen[0], seen[1]

    def before(self, layer: "LayerStep", x: Tensor, sublayer: int) -> Tensor:
        kept = layer.shifted[sublayer].clone()
        before = kept[self.rows].masked_fill(self.first[:, None], 0.0)
        kept[self.rows] = x
        layer.shifted[sublayer] = kept
        return before


class LayerStep:
    """A block for one new place of rows, with keys and values of the places before.

    keys, values [B, H, r + m, c]: r of the sequence before, then its own.
    shifted: [B, D / 2] by sublayer, of the newest place, where tokens are shifted.
    """

    def __init__(
        self, block: Block, batch: int, slots: int, back: int, matrix: Callable[[Tensor], Matrix]
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
        self.is_shifted = block.token_shift
        self.shifted: dict[int, Tensor] = {}
        # PyTorch's products of one query in bf16 take four times as long on a CPU.
        dtype = exact if weight.device.type == "cpu" else self.qkv.dtype
        shape = (batch, self.heads, slots, self.channels)
        self.keys, self.values = weight.new_zeros(2, *shape, dtype=dtype)
        self.flat_keys, self.flat_values = self.keys.flatten(0, 1), self.values.flatten(0, 1)

    def __call__(self, x: Tensor, turn: Turn | None, to: Rows) -> Tensor:
        """x [R, D] to [R, D]."""
        h = self.heads
        read = self._read(self.attention_norm(x), to, 0)
        qkv = self.qkv(read).to(self.keys.dtype).view(len(x), 3 * h, self.channels)
        qk = qkv.narrow(1, 0, 2 * h)
        if self.factor is not None:
            qk = F.rms_norm(qk, qk.shape[-1:], eps=1e-5) * self.factor
        if turn is not None:
            qk = rotate(qk, turn)
        keys, values = to.append(self, qk.narrow(1, h, h), qkv.narrow(1, 2 * h, h))
        q = qk.narrow(1, 0, h).reshape(-1, 1, self.channels).to(keys.dtype)
        scores = torch.bmm(q, keys.mT)  # [R H, 1, n]
        if to.bias is not None:
            scores += to.bias
        attended = torch.bmm(scores.softmax(-1), values)
        x = self.output.onto(x, attended.view(len(x), -1))
        read = self._read(self.feed_forward_norm(x), to, 1)
        return self.down.onto(x, self.activation(self.up(read)))

    def _read(self, x: Tensor, to: Rows, sublayer: int) -> Tensor:
        """x [R, D], its second half from the place before where tokens are shifted."""
        if not self.is_shifted:
            return x
        own, moved = x.chunk(2, dim=-1)
        return torch.cat([own, to.before(self, moved, sublayer)], dim=-1)


class StageStep:
    """A stage for one new position of rows.

    places: m, the places of a sequence that the caches hold.
    above [B, m, D]: what the output of the stage above says at each place of the sequence.
    """

    def __init__(self, stage: Stage, batch: int, places: int, dtype: torch.dtype) -> None:
        self.stage, self.bytes, self.back, self.places = stage, stage.bytes, stage.back, places
        self.window = stage.attention_window or stage.back + places  # positions that one sees
        numbers = sum(each.numel() for block in stage.blocks for each in block.parameters())
        is_cold = stage.bytes > 1 or dtype.itemsize * numbers > CACHED
        matrix = partial(Matrix, dtype=dtype, rows=batch, is_cold=is_cold)
        self.layers = [
            LayerStep(block, batch, stage.back + places, stage.back, matrix)
            for block in stage.blocks
        ]
        weight = stage.start_embed.weight.detach()
        self.norm = _norm_of(stage.norm, torch.promote_types(weight.dtype, torch.float32))
        self.start = weight.expand(batch, -1)
        self.parent = None
        if stage.parent is not None:
            self.parent = matrix(stage.parent.weight, rows=batch * places)
        out = stage.patch_out
        self.patch_out = matrix(out.weight) if isinstance(out, nn.Linear) else None
        self.above = torch.empty(0)
        self._turns: tuple[int, Tensor, Tensor] | None = None

    def advance(self, own: Tensor, above: Tensor | None, turn: Turn | None, to: Rows) -> Tensor:
        """The output [R, D] (or [R, b * d]) at the new positions of the rows `to`.

        own [R, D]: the input but for `above`, [R, D].
        """
        x = own if above is None else own + above
        for layer in self.layers:
            x = layer(x, turn, to)
        x = self.norm(x)
        return x if self.patch_out is None else self.patch_out(x)

    def spread(self, output: Tensor) -> Tensor:
        """The output [R, p * d] of the stage above to what it says at each place, [R, p, D]."""
        assert self.parent is not None
        said = self.parent(output.reshape(len(output) * self.places, -1))
        return said.view(len(output), self.places, -1)

    def own_input(self, before: Tensor, place: int) -> Tensor:
        """As `Stage.own_input`, of all rows at one place: before [B, window] to [B, D]."""
        stage = self.stage
        if stage.bytes > 1:
            return stage.own_input(before, before.new_full((len(before),), place))
        if place % self.places == 0 and not self.back:
            x = self.start
        else:
            x = F.embedding(before[:, -1], stage.byte_embed.weight)
        if stage.position_embed is not None:
            x = x + stage.position_embed.weight[place - 1]
        if stage.ngram_embed is not None:
            x = x + stage.ngram_in(stage.ngram_embed(before))
        return x

    def turn(self, place: int) -> Turn | None:
        """As `Stage.turn`, of one place."""
        if not self.stage.is_turned:
            return None
        block, at = divmod(place, TURNS)
        if self._turns is None or self._turns[0] != block:
            keys = self.layers[0].keys
            places = torch.arange(block * TURNS, (block + 1) * TURNS, device=keys.device)
            self._turns = (block, *turn_of(places, self.stage.channels, keys.dtype))
        _, cos, sin = self._turns
        return cos[at], sin[at]
