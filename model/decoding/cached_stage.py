"""One stage of the model for one new position of each row.

Shapes:
    B   rows of the decoder      R   rows that a stage advances
    b   bytes in a position of the stage
    m   positions in a sequence of the stage: a row for stage 0, else a position of its parent
    r   positions of the preceding sequence that a position attends to
    D   width of the stage       H   heads of c channels
    d   width of the embedding of one byte
    J   codec features of an id

The equations are those of `layers.py` and `stage.py`. A step is faster here because weights are
cast and laid out once, constants are looked up, and rows at the same position need no indices.

Norm, rotation and scale of queries and keys are written in both places. `CachedBlock` folds gain
and scale into one factor before the rotation, or into the weight. This saves two calls a layer and
rounds in another way than training does, and compressed files depend on how it rounds.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.model.decoding.kv_cache import CachedRows, CacheSlots, KVCache
from bytelm.model.decoding.packed_linear import PackedLinear
from bytelm.model.layers import Block, RMSNorm
from bytelm.model.rope import RopeTable, apply_rope, rope_cos_sin
from bytelm.model.stage import Stage

ROPE_BLOCK = 4096
"""Positions whose rotations are computed at once."""


class CachedBlock:
    """A block for one new position of rows, with a cache of preceding keys and values."""

    def __init__(
        self,
        block: Block,
        batch: int,
        slots: CacheSlots,
        pack: Callable[[Tensor], PackedLinear],
    ) -> None:
        attention, (up, activation, down) = block.attention, block.feed_forward
        assert isinstance(up, nn.Linear)
        assert isinstance(down, nn.Linear)
        weight, gain = attention.qkv.weight.detach().clone(), attention.norm_gain
        width, self.heads = weight.shape[1], attention.heads
        self.channels = width // self.heads
        accum_dtype = torch.promote_types(weight.dtype, torch.float32)
        self.qk_gain = None  # [2 H, 1], of queries and keys
        if gain is None:
            weight[:width] *= attention.scale
        else:
            query_gain = gain.weight.detach().to(accum_dtype) * attention.scale
            self.qk_gain = torch.cat([query_gain, torch.ones_like(query_gain)])[:, None]
        self.qkv, self.output = pack(weight), pack(attention.output.weight)
        self.up, self.down = pack(up.weight), pack(down.weight)
        self.activation = torch.relu_ if isinstance(activation, nn.ReLU) else activation.forward
        self.attention_norm = _norm_in(block.attention_norm, accum_dtype)
        self.feed_forward_norm = _norm_in(block.feed_forward_norm, accum_dtype)
        # PyTorch's products of one query in bf16 take four times as long on a CPU.
        dtype = accum_dtype if weight.device.type == "cpu" else self.qkv.dtype
        shape = (batch * self.heads, slots.previous + slots.current, self.channels)
        self.cache = KVCache(*weight.new_zeros(2, *shape, dtype=dtype))

    def __call__(self, x: Tensor, rope: RopeTable | None, rows: CachedRows) -> Tensor:
        """x [R, D] to [R, D]."""
        h = self.heads
        qkv = self.qkv(self.attention_norm(x)).to(self.cache.keys.dtype)
        qkv = qkv.view(len(x), 3 * h, self.channels)
        qk = qkv.narrow(1, 0, 2 * h)
        if self.qk_gain is not None:
            qk = F.rms_norm(qk, qk.shape[-1:], eps=1e-5) * self.qk_gain
        if rope is not None:
            qk = apply_rope(qk, rope)
        q, k = qk.chunk(2, dim=1)
        attended = rows.attend(self.cache, q, k, qkv.narrow(1, 2 * h, h))
        x = x + self.output(attended)
        return x + self.down(self.activation(self.up(self.feed_forward_norm(x))))


class CachedStage:
    """A stage for one new position of rows.

    Args:
        stage: its weights are copied as they are now, except for those of embeddings.
        batch: B.
        slots: of its caches.
        dtype: type of matrix products.
    """

    def __init__(self, stage: Stage, batch: int, slots: CacheSlots, dtype: torch.dtype) -> None:
        self.stage = stage
        self.position_bytes, self.sequence_length = stage.position_bytes, slots.current
        self.slots = slots
        pack = partial(PackedLinear, dtype=dtype)
        self.blocks = [CachedBlock(block, batch, slots, pack) for block in stage.blocks]
        start = stage.start_embed.weight.detach()
        self.norm = _norm_in(stage.norm, torch.promote_types(start.dtype, torch.float32))
        self.start = start.expand(batch, -1)
        linear = {
            name: pack(module.weight)
            for name, module in stage.named_children()
            if isinstance(module, nn.Linear)
        }
        self.parent, self.patch_out = linear.get("parent"), linear.get("patch_out")
        self.ngram_in, self.feature_in = linear.get("ngram_in"), linear.get("feature_in")
        # [B, m, D], the parent's part of the input at each position of the current sequence
        self.parent_input = start.new_empty(batch, slots.current, len(start), dtype=dtype)
        self._rope_block: tuple[int, Tensor, Tensor] | None = None

    def advance(
        self,
        token_input: Tensor,
        parent_input: Tensor | None,
        rope: RopeTable | None,
        rows: CachedRows,
    ) -> Tensor:
        """Output at the new positions of `rows`, [R, D] (or [R, b * d]).

        Args:
            token_input: [R, D], see `token_input`.
            parent_input: [R, D]; None for stage 0.
            rope: rotations of the new positions.
        """
        x = token_input if parent_input is None else token_input + parent_input
        for block in self.blocks:
            x = block(x, rope, rows)
        x = self.norm(x)
        return x if self.patch_out is None else self.patch_out(x)

    def set_parent_output(self, output: Tensor, rows: Sequence[int]) -> None:
        """Project the parent's output [R, m * d] in `rows` to the inputs of a new sequence."""
        assert self.parent is not None
        projected = self.parent(output.reshape(len(output) * self.sequence_length, -1))
        projected = projected.view(len(output), self.sequence_length, -1)
        if len(rows) == len(self.parent_input):
            self.parent_input = projected
        else:
            self.parent_input[rows] = projected

    def token_input(
        self, preceding_ids: Tensor, position: int, codec_features: Tensor | None
    ) -> Tensor:
        """`Stage.token_input` of rows at one position: [R, input_window] and [R, J] to [R, D]."""
        stage = self.stage
        if stage.position_bytes > 1:
            positions = preceding_ids.new_full((len(preceding_ids),), position)
            return stage.token_input(preceding_ids, positions, codec_features)
        if position % self.sequence_length == 0 and not stage.cross_patch_keys:
            x = self.start[: len(preceding_ids)]
        else:
            x = F.embedding(preceding_ids[:, -1], stage.byte_embed.weight)
        if stage.position_embed is not None:
            x = x + stage.position_embed.weight[position - 1]
        return stage.add_side_inputs(
            x, preceding_ids, codec_features, self.ngram_in, self.feature_in
        )

    def rope(self, position: int) -> RopeTable | None:
        """`Stage.rope` of one position, from a table of ROPE_BLOCK positions."""
        if not self.stage.uses_rope:
            return None
        block, offset = divmod(position, ROPE_BLOCK)
        if self._rope_block is None or self._rope_block[0] != block:
            keys = self.blocks[0].cache.keys
            positions = torch.arange(
                block * ROPE_BLOCK, (block + 1) * ROPE_BLOCK, device=keys.device
            )
            self._rope_block = (block, *rope_cos_sin(positions, self.stage.channels, keys.dtype))
        _, cos, sin = self._rope_block
        return cos[offset], sin[offset]


def _norm_in(module: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The norm of a stage's channels, with its weights in `dtype`."""
    if isinstance(module, RMSNorm):
        weight = module.weight.detach().to(dtype)
        return partial(F.rms_norm, normalized_shape=weight.shape, weight=weight, eps=module.eps)
    assert isinstance(module, nn.LayerNorm)
    weight, bias = module.weight.detach().to(dtype), module.bias.detach().to(dtype)
    shape, eps = weight.shape, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
