"""Drawing rows on a GPU: steps of fixed shapes that read and write tensors of fixed addresses.

A step draws the next id of every row, appends it, and runs the stages that reach a new position.
Which stages those are, and where below stage 0 they stand, depends only on the place in the patch,
so that there is one step for each place; a GPU replays it as a CUDA graph. What changes from patch
to patch (the position, ids, caches, guides, random numbers, codec features) lives on the device,
and the host reads ids when it wants them: after a patch, or many.

All rows are drawn together: their prompts are equally long and fill at least a patch, so that no
row is in its first sequence of a stage. On a CPU a `Decoder` is faster: see `row_drawer.py`.

Shapes:
    B   rows                     t   ids that each row holds
    P   ids in a patch           R   ids before a position that stages read (`lookback_bytes`)
    b   bytes in a position of a stage
    m   positions in a sequence of a stage: a row for stage 0, else a position of its parent
    d   width of a slice of the parent's output, one for each of m positions
    V   vocabulary               J   codec features of an id
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytelm.model.codec_features.incremental import BatchFeatures
from bytelm.model.codec_features.kernels import NO_DOCUMENTS, NO_PLACES, read_row
from bytelm.model.codec_features.layout import FEATURES, NONE
from bytelm.model.decoding.row_sampler import RowSampler
from bytelm.model.decoding.static_attention import (
    DocumentContext,
    RowCaches,
    SequenceContext,
    position_bias,
)
from bytelm.model.decoding.static_features import StaticFeatures
from bytelm.model.decoding.static_prefill import run_prompts
from bytelm.model.decoding.step_graphs import StepGraphs
from bytelm.model.layers import compute_dtype
from bytelm.model.megabyte import Megabyte
from bytelm.model.stage import Stage

PROMPT_IDS = 2**17
"""Ids of prompts that run at once, which bounds their memory."""
SLOT_MULTIPLE = 16
"""Slots of stage 0's caches are a multiple of this, to which fused attention aligns its masks."""
IDS_AT_ONCE = 64
"""Ids after which reading them on the host costs little beside drawing them."""


class StaticDecoder:
    """Draws `batch` rows of at most `length` ids, each one document from its start.

    Under autocast, products have autocast's type: make and use a decoder inside one such context.

    Args:
        model: in evaluation mode if it has dropout. For products of another type than its weights'
            the decoder keeps a copy.
        sampler: draws the rows' ids; it goes on from one `begin` to the next.
        length: the most ids that a row can hold.
    """

    def __init__(self, model: Megabyte, batch: int, length: int, sampler: RowSampler) -> None:
        weight = model.lm_head.weight
        self._device, self._dtype = weight.device, compute_dtype(weight)
        self.model = _with_matrices_in(model, self._dtype)
        self.batch, self.length, self.sampler = batch, length, sampler
        config = model.config
        self._patch = config.patch
        patches = length // config.patch + 1  # the last one is not yet complete
        self._caches = [self._stage_caches(stage, patches) for stage in self.model.stages]
        lookback = model.lookback_bytes
        self._ids = weight.new_zeros(batch, lookback + patches * config.patch, dtype=torch.int64)
        self._ids[:, :lookback] = -1
        self._window = torch.arange(lookback, device=self._device)
        self._position = torch.zeros(1, dtype=torch.int64, device=self._device)
        """t, on the device."""
        self._held = 0
        """t, on the host."""
        self._features = None
        if config.codec_features:
            self._features = StaticFeatures(batch, length, self._device)
        width = config.stages[-1].width
        self._head = weight.new_empty(config.vocab_size, width, dtype=self._dtype)
        accum_dtype = torch.promote_types(self._dtype, torch.float32)
        self._logits = weight.new_empty(batch, config.vocab_size, dtype=accum_dtype)
        self._outputs: list[Tensor] = []  # of each stage at its newest position
        self._graphs = StepGraphs(self._device)

    def compile(self, backend: str = "inductor") -> None:
        """Compile what a step computes between attentions, by a backend of `torch.compile`.

        The first steps then take half a minute, and from disk a few seconds on the same machine.
        """
        self.model = copy.deepcopy(self.model)  # the caller's goes on as it is
        for stage in self.model.stages:
            stage.compile_regions(backend, is_for_decoding=True)
        if self._features is not None:
            self._features.compile(backend)

    @property
    def logits(self) -> Tensor:
        """Logits of each row's next id, [B, V]; the next step overwrites them."""
        return self._logits

    @torch.no_grad()
    def begin(self, prompts: Tensor, modality: int) -> None:
        """Start every row with its prompt, whose ids run in parallel; forget what rows held.

        Args:
            prompts: [B, t] int64, at least a patch and at most `length` ids.
            modality: the code of the modality of the rows' next ids.

        Raises:
            ValueError: the prompts have another number of rows, or are too short or too long.
        """
        rows, held = prompts.shape
        if rows != self.batch:
            raise ValueError(f"{rows} prompts for {self.batch} rows: give one for each row")
        if not self._patch <= held <= self.length:
            raise ValueError(
                f"prompts of {held} ids: a drawing on a GPU starts with at least one patch of "
                f"{self._patch} ids, and has room for {self.length}"
            )
        lookback = self.model.lookback_bytes
        self._ids[:, lookback:] = 0
        self._ids[:, lookback : lookback + held] = prompts
        self._held = held
        self._position.fill_(held)
        heads = self.model.lm_head.weight.detach().chunk(max(1, self.model.config.modality_heads))
        self._head.copy_(heads[modality if len(heads) > 1 else 0])
        outputs = self._run_prompts()
        if not self._outputs:
            self._outputs = [torch.empty_like(output) for output in outputs]
        for kept, output in zip(self._outputs, outputs, strict=True):
            kept.copy_(output)
        self._set_logits()

    def draw(self, count: int) -> None:
        """Draw the next `count` ids of every row. The host waits for nothing.

        Raises:
            ValueError: before `begin`, and where the rows have no room for so many.
        """
        if not self._held:
            raise ValueError("the decoder holds no rows yet: call begin")
        if self._held + count > self.length:
            raise ValueError(
                f"{count} ids behind {self._held}: a row holds the decoder's {self.length} ids"
            )
        for _ in range(count):
            self.sampler.supply_noise()
            place = (self._held + 1) % self._patch
            self._run_step(place)
            self._held += 1

    def last_ids(self, count: int) -> Tensor:
        """The last `count` ids of every row, [B, count] on the device."""
        end = self.model.lookback_bytes + self._held
        return self._ids[:, end - count : end]

    @torch.no_grad()
    def _run_step(self, place: int) -> None:
        """Draw an id of every row, which brings the rows to `place` in their patch."""
        updates_audio = self._features is not None and self._features.is_block_due()
        step = partial(self._step, place, updates_audio)
        self._graphs.run((place, updates_audio), step)
        if self._features is not None:
            self._features.count_on_host()

    def _step(self, place: int, updates_audio: bool) -> None:
        """The launches of a step; nothing in here reads a tensor on the host."""
        ids = self.sampler.draw_static(self._logits)
        lookback = self.model.lookback_bytes
        self._ids.index_copy_(1, self._position + lookback, ids[:, None])
        self._position += 1
        if self._features is not None:
            self._features.push(ids, updates_audio)
        self._advance(place)
        self._set_logits()

    def _advance(self, place: int) -> None:
        """Run the stages that reach a new position at `place` of the patch."""
        preceding_ids = self._ids.index_select(1, self._position + self._window)
        for index, (stage, layers) in enumerate(zip(self.model.stages, self._caches, strict=True)):
            size, m = stage.position_bytes, stage.sequence_length
            if place % size:
                continue
            position = self._position // size
            offset = place // size % m
            features = None
            if stage.feature_embed is not None and self._features is not None:
                features = self._features.next_features()
            contexts: list[DocumentContext] | list[SequenceContext]
            parent_slices = None
            if index:
                parent_slices = self._outputs[index - 1].unflatten(1, (m, -1))[:, offset]
                contexts = [SequenceContext(cache, offset) for cache in layers]
            else:
                slots = layers[0].keys.shape[2]
                bias = position_bias(position, slots, stage.attention_window, self._dtype)
                contexts = [DocumentContext(cache, position, bias) for cache in layers]
            output = stage(
                preceding_ids[:, -stage.input_window :],
                position.expand(self.batch),
                features,
                parent_slices,
                contexts,
            )
            self._outputs[index].copy_(output)

    def _set_logits(self) -> None:
        """Logits of the last stage's output."""
        self._logits.copy_(F.linear(self._outputs[-1].to(self._dtype), self._head))

    def _run_prompts(self) -> list[Tensor]:
        """Run the rows' prompts; returns each stage's output where the rows stand, [B, ...]."""
        features = self._read_prompts() if self._features is not None else None
        at_once = max(1, PROMPT_IDS // self._held)
        outputs = []
        for first in range(0, self.batch, at_once):
            rows = slice(first, first + at_once)
            caches = [[cache.rows(rows) for cache in layers] for layers in self._caches]
            read = None if features is None else features[rows]
            outputs.append(run_prompts(self.model, self._ids[rows], self._held, read, caches))
        return [torch.cat(of_stage) for of_stage in zip(*outputs, strict=True)]

    def _read_prompts(self) -> Tensor:
        """Codec features [B, K * P, J] of the rows' ids and of the next one, read on the host."""
        assert self._features is not None
        ids = self._ids[:, self.model.lookback_bytes :]
        held_ids = ids[:, : self._held].cpu().contiguous().numpy()
        features = np.full((*ids.shape, FEATURES), NONE, np.int16)
        state = BatchFeatures(self.batch, self._patch, self.length).state
        for row, row_ids in enumerate(held_ids):
            read_row(state, row, row_ids, NO_DOCUMENTS, features[row, : self._held], NO_PLACES)
        features[:, self._held] = state.features
        self._features.begin(state)
        return torch.from_numpy(features).to(self._device)

    def _stage_caches(self, stage: Stage, patches: int) -> list[RowCaches]:
        """Empty caches of a stage's layers; they hold numbers, since masked ones are multiplied."""
        r, current = stage.cross_patch_keys, stage.sequence_length
        if stage.parent is None:
            current = -(-patches // SLOT_MULTIPLE) * SLOT_MULTIPLE
        heads = stage.blocks[0].attention.heads
        shape = (self.batch, heads, r + current, stage.channels)

        def zeros() -> Tensor:
            return torch.zeros(shape, dtype=self._dtype, device=self._device)

        return [RowCaches(zeros(), zeros(), r) for _ in stage.blocks]


def _with_matrices_in(model: Megabyte, dtype: torch.dtype) -> Megabyte:
    """The model, or a copy whose matrices have another type, so that no step casts them again."""
    if model.lm_head.weight.dtype == dtype:
        return model
    model = copy.deepcopy(model)
    for stage in model.stages:
        for module in stage.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                module.to(dtype)
    return model
