"""A model's weights in the flat arrays and records that `step_kernel.py` reads.

Shapes:
    B   rows of the decoder
    m   positions in a sequence of a stage: a row for stage 0, else a position of its parent
    r   positions of the preceding sequence that a position attends to
    D   width of a stage         H   heads of c channels
    b   bytes in a position      d   width of the embedding of one byte
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor, nn

from bytelm.model.decoding.kv_cache import CacheSlots, KVCache
from bytelm.model.decoding.step_kernel import FINE_POSITIONS
from bytelm.model.decoding.step_products import PANEL
from bytelm.model.decoding.step_records import BLOCK, LINEAR, STAGE
from bytelm.model.layers import Block, RMSNorm, SwiGLU
from bytelm.model.megabyte import Megabyte
from bytelm.model.rope import rope_cos_sin
from bytelm.model.stage import Stage

ALIGNMENT = 16
"""Every part begins at a multiple of so many numbers: 64 bytes, the width of a vector."""
HIGH_HALF = 1 if sys.byteorder == "little" else 0
"""Index of the half of a float32 number that is its bf16 number, where the other half is 0."""
NONE = -1
"""Offset of what a model does not have."""
NO_MATRIX = 0, 0, 0, False
"""LINEAR of a matrix that a model does not have."""

Fields = tuple[Any, ...]
"""The fields of a record, in their order."""


class StepLayout:
    """A model as a compiled step reads it, and the caches that the step fills.

    Args:
        model: in fp32 on a CPU; its weights are copied as they are.
        batch: B.
        length: the most ids of a row.
        slots: of the caches of each stage.
    """

    def __init__(
        self, model: Megabyte, batch: int, length: int, slots: Sequence[CacheSlots]
    ) -> None:
        weights, rotations = _Weights(), _Flat(np.float64)
        self.batch, self.slots, self._length = batch, slots, length
        self._cached = 0  # numbers in the cache
        blocks: list[Fields] = []
        stages = []
        for stage, of_stage in zip(model.stages, slots, strict=True):
            stages.append(self._stage(stage, of_stage, len(blocks), weights, rotations))
            blocks += [self._block(block, of_stage, weights) for block in stage.blocks]
        heads = model.lm_head.weight.chunk(max(1, model.config.modality_heads))
        self.stages, self.blocks = np.array(stages, STAGE), np.array(blocks, BLOCK)
        self.heads = np.array([weights.add_linear(head) for head in heads], LINEAR)
        self.weights, self.rotations = weights.joined(), rotations.joined()
        self.bf16_weights = weights.bf16.joined()
        self.cache = torch.zeros(self._cached)
        embedded = max(
            stage.embedded_ids * stage.byte_embed.embedding_dim for stage in model.stages
        )
        self._widest = max(weights.widest, embedded)

    def buffer_numbers(self, rows: int) -> int:
        """Numbers in each buffer of a step of so many rows."""
        scores = max(slots.previous + slots.current for slots in self.slots)
        numbers = max(rows * self._widest, self._widest + scores)
        return -(-numbers // ALIGNMENT) * ALIGNMENT

    def kv_caches(self, index: int, row: int) -> list[KVCache]:
        """The row's keys and values in each block of stage `index`, views of [H, r + m, c]."""
        stage, slots = self.stages[index], self.slots[index]
        heads = int(stage["heads"])
        shape = (heads, slots.previous + slots.current, int(stage["width"]) // heads)
        size = int(np.prod(shape))
        blocks = self.blocks[stage["first_block"] : stage["last_block"]]
        return [
            KVCache(
                *(
                    self.cache[int(block[name]) + row * size :][:size].view(shape)
                    for name in ("keys", "values")
                )
            )
            for block in blocks
        ]

    def set_parent_output(self, index: int, output: Tensor, row: int) -> None:
        """Store the output [1, m * slice] of the parent of stage `index`, in one row."""
        start = int(self.stages[index]["parent_output"]) + row * output.numel()
        self.cache[start : start + output.numel()] = output.flatten()

    def _reserve(self, numbers: int) -> int:
        """Offset of so many numbers of each row in the cache."""
        offset = self._cached
        self._cached += -(-self.batch * numbers // ALIGNMENT) * ALIGNMENT
        return offset

    def _stage(
        self,
        stage: Stage,
        slots: CacheSlots,
        first_block: int,
        weights: "_Weights",
        rotations: "_Flat",
    ) -> Fields:
        block, parent, encoder = stage.blocks[0], stage.parent, stage.patch_encoder
        ngrams, features = stage.ngram_embed, stage.feature_embed
        filters = [None] * 3 if encoder is None else encoder.layers
        parent_output = NONE
        if parent is not None:
            parent_output = self._reserve(slots.current * parent.in_features)
        filter_3, filter_5, filter_7 = (weights.add_filter(filter_) for filter_ in filters)
        return _record(
            STAGE,
            position_bytes=stage.position_bytes,
            sequence_length=slots.current,
            previous=slots.previous,
            window=slots.window,
            width=len(stage.start_embed.weight),
            heads=block.attention.heads,
            swiglu=isinstance(block.feed_forward[1], SwiGLU),
            first_block=first_block,
            last_block=first_block + len(stage.blocks),
            norm=weights.add_norm(stage.norm),
            byte_embed=weights.add_table(stage.byte_embed),
            byte_width=stage.byte_embed.embedding_dim,
            embedded_ids=stage.embedded_ids,
            start=weights.add(numbers_of(stage.start_embed.weight)),
            position_embed=weights.add_table(stage.position_embed),
            filter_3=filter_3,
            filter_5=filter_5,
            filter_7=filter_7,
            patch_in=weights.add_module(stage.patch_in),
            patch_out=weights.add_module(stage.patch_out),
            parent=weights.add_module(parent),
            parent_output=parent_output,
            ngram_embed=weights.add_table(ngrams),
            ngram_table_size=0 if ngrams is None else ngrams.table_size,
            ngram_width=0 if ngrams is None else ngrams.embedding_dim,
            ngram_in=weights.add_module(stage.ngram_in),
            feature_embed=weights.add_table(features),
            feature_in=weights.add_module(stage.feature_in),
            **_rotation_tables(stage, self._length // stage.position_bytes + 1, rotations),
        )

    def _block(self, block: Block, slots: CacheSlots, weights: "_Weights") -> Fields:
        attention, (up, _, down) = block.attention, block.feed_forward
        qkv, gain = attention.qkv.weight.detach().clone(), attention.norm_gain
        width = qkv.shape[1]
        if gain is None:
            qkv[:width] *= attention.scale
            qk_gain = NONE
        else:
            query_gain = gain.weight.detach() * attention.scale
            qk_gain = weights.add(numbers_of(torch.cat([query_gain, torch.ones_like(query_gain)])))
        cached = (slots.previous + slots.current) * width
        return _record(
            BLOCK,
            attention_norm=weights.add_norm(block.attention_norm),
            qkv=weights.add_linear(qkv),
            qk_gain=qk_gain,
            output=weights.add_linear(attention.output.weight),
            feed_forward_norm=weights.add_norm(block.feed_forward_norm),
            up=weights.add_module(up),
            down=weights.add_module(down),
            keys=self._reserve(cached),
            values=self._reserve(cached),
        )


class _Flat:
    """One array of numbers that grows part by part.

    Arrays and not tensors: copies of a few million numbers take longer by PyTorch's threads than by
    one, where another process has a core.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._parts: list[npt.NDArray[Any]] = []
        self._size = 0

    def add(self, values: npt.NDArray[Any]) -> int:
        """Append numbers; returns the offset of the first."""
        offset = self._size
        self._size += -(-values.size // ALIGNMENT) * ALIGNMENT
        padding = np.zeros(self._size - offset - values.size, self._dtype)
        self._parts += [values.reshape(-1), padding]
        return offset

    def joined(self) -> npt.NDArray[Any]:
        """All numbers."""
        # PyTorch's memory begins at a multiple of 64 bytes: no vector straddles two cache lines.
        flat = torch.empty(self._size * self._dtype.itemsize, dtype=torch.uint8)
        numbers = flat.numpy().view(self._dtype)
        if self._parts:
            np.concatenate(self._parts, out=numbers)
        return numbers


class _Weights(_Flat):
    """The numbers of a model in float32, but for those of matrices that are all bf16 numbers."""

    def __init__(self) -> None:
        super().__init__(np.float32)
        self.bf16 = _Flat(np.uint16)
        self.widest = 0
        """Inputs or outputs of the widest matrix."""

    def add_table(self, table: nn.Embedding | None) -> int:
        """Append a table; returns its offset."""
        return NONE if table is None else self.add(numbers_of(table.weight))

    def add_linear(self, weight: Tensor) -> Fields:
        """Append a matrix [outputs, inputs] in panels; returns a LINEAR."""
        outputs, inputs = weight.shape
        self.widest = max(self.widest, outputs, inputs)
        numbers = numbers_of(weight)
        is_bf16 = holds_bf16(numbers)
        if is_bf16:
            numbers = numbers.view(np.uint16)[:, HIGH_HALF::2]
        panels = [numbers[first : first + PANEL].T for first in range(0, outputs, PANEL)]
        joined = np.concatenate([panel.reshape(-1) for panel in panels])
        offset = self.bf16.add(joined) if is_bf16 else self.add(joined)
        return offset, inputs, outputs, is_bf16

    def add_module(self, module: nn.Module | None) -> Fields:
        """Append the matrix of a linear layer; returns a LINEAR, empty without a layer."""
        return self.add_linear(module.weight) if isinstance(module, nn.Linear) else NO_MATRIX

    def add_filter(self, convolution: nn.Module | None) -> Fields:
        """Append a convolution over positions as a matrix that meets them joined; a LINEAR."""
        if convolution is None:
            return NO_MATRIX
        assert isinstance(convolution, nn.Conv1d)
        return self.add_linear(rearrange(convolution.weight, "o i f -> o (f i)"))

    def add_norm(self, norm: nn.Module) -> Fields:
        """Append a norm's weights; returns a NORM."""
        if isinstance(norm, RMSNorm):
            return self.add(numbers_of(norm.weight)), NONE, norm.eps
        assert isinstance(norm, nn.LayerNorm)
        return self.add(numbers_of(norm.weight)), self.add(numbers_of(norm.bias)), norm.eps


def numbers_of(tensor: Tensor) -> npt.NDArray[Any]:
    """The numbers of a tensor on a CPU, one behind another; a copy where they lie otherwise."""
    return tensor.detach().contiguous().numpy()


def holds_bf16(numbers: npt.NDArray[np.float32]) -> bool:
    """Whether all float32 numbers are bf16 numbers, as those that were stored in bf16."""
    return not numbers.view(np.uint16)[..., 1 - HIGH_HALF :: 2].any()


def _rotation_tables(stage: Stage, positions: int, rotations: _Flat) -> dict[str, int]:
    """Append the rotations of a stage's positions, if it has any; returns two fields of STAGE."""
    if not stage.uses_rope:
        return {"rotations": NONE, "coarse_positions": 0}
    coarse = torch.arange(0, positions, FINE_POSITIONS)
    position = torch.cat([coarse, torch.arange(FINE_POSITIONS)])
    cos, sin = rope_cos_sin(position, stage.channels, torch.float64)
    pairs = stage.channels // 2
    tables = torch.stack([cos[:, 0, :pairs], sin[:, 0, pairs:]], dim=1)  # [positions, 2, c / 2]
    return {"rotations": rotations.add(numbers_of(tables)), "coarse_positions": len(coarse)}


def _record(dtype: np.dtype[Any], **fields: Any) -> Fields:
    """The fields of a record in the order of its type."""
    return tuple(fields[name] for name in dtype.names or ())
