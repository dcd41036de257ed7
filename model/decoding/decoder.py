"""Decoding with a cache for every stage: a step runs only the stages that reach a new position.

Shapes:
    B   rows of the decoder      R   rows that a stage advances
    b   bytes in a position of the stage
    m   positions in a sequence of the stage: a row for stage 0, else a position of its parent
    Q   sequences of a prompt    n   positions of a prompt that a stage runs
    D   width of the stage
    d   width of a slice of the parent's output, one for each of m positions
    V   vocabulary               J   codec features of an id

A row that holds t ids waits for the logits of id t. Stage i then stands at position t // b_i, and
its input is the preceding position, so that it advances exactly when t is a multiple of b_i.

Prompts run through the stages of training, one row after another. Steps in fp32 on a CPU are one
compiled call (`compiled_steps.py`), in which the logits of a row are bit-identical alone and in any
batch; other types take PyTorch's operations (`module_steps.py`).
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from bytelm.model.attention_context import AttentionContext, PackedContext
from bytelm.model.decoding.compiled_steps import CompiledSteps
from bytelm.model.decoding.decoded_rows import DecodedRows
from bytelm.model.decoding.kv_cache import CacheSlots, KVCache, PrefillContext
from bytelm.model.decoding.module_steps import ModuleSteps
from bytelm.model.layers import compute_dtype
from bytelm.model.megabyte import Megabyte


class Steps(Protocol):
    """Runs a model's stages for new positions of rows, and keeps their caches."""

    def kv_caches(self, index: int, row: int) -> list[KVCache]:
        """The row's keys and values in each block of stage `index`, views of [H, r + m, c]."""

    def set_parent_output(self, index: int, output: Tensor, row: int) -> None:
        """Keep the output [1, m * d] of the parent of stage `index`, for a row's new sequence."""

    def step(self, new_ids: Tensor) -> Tensor:
        """Append an id to each row, [B] int64; returns the logits of the next ones, [B, V]."""


def has_compiled_steps(model: Megabyte) -> bool:
    """Whether steps are a compiled call, in which a row is the same alone and in any batch."""
    weight = model.lm_head.weight
    return weight.device.type == "cpu" and compute_dtype(weight) == torch.float32


class Decoder:
    """Decodes `batch` rows, each one document from its start, with caches of a fixed size.

    Under autocast, products have autocast's type: make and use a decoder inside one such context.
    Rows that hold equally many ids run together, which is fastest.

    Args:
        model: in evaluation mode if it has dropout. The decoder copies its weights as they are.
        batch: B.
        length: the most ids that a row can hold; by default the model's context.

    Raises:
        ValueError: `batch` or `length` is out of range, or the model has dropout and is training.
    """

    def __init__(self, model: Megabyte, batch: int, length: int | None = None) -> None:
        config = model.config
        self.length = config.context if length is None else length
        if batch < 1:
            raise ValueError(f"a decoder of {batch} rows decodes nothing: use at least 1")
        if not 1 <= self.length <= config.context:
            raise ValueError(
                f"a decoder's length must be from 1 to the model's context of {config.context} "
                f"ids, got {self.length}"
            )
        if model.training and config.dropout > 0.0:
            raise ValueError("the model is in training mode and has dropout: call model.eval()")
        self.model = model
        self.batch = batch
        self._rows = DecodedRows(model, batch, self.length)
        patches = self.length // config.patch + 1  # the last one is not yet complete
        self._slots = [
            CacheSlots.of(stage, length)
            for stage, length in zip(model.stages, (patches, *config.patch_sizes), strict=True)
        ]
        self._steps: Steps
        if has_compiled_steps(model):
            self._steps = CompiledSteps(model, self._rows, self.length, self._slots)
        else:
            self._steps = ModuleSteps(model, self._rows, self._slots)
        self._longest = -1  # ids of the longest row; -1 before `prefill`

    @property
    def positions(self) -> Tensor:
        """[B] int64, the number of ids that each row holds."""
        return torch.from_numpy(self._rows.held.copy()).to(self._rows.ids.device)

    @property
    def places(self) -> Tensor:
        """Places of the rows' next ids in their payloads, [B, PLACES], for a model that mixes."""
        return self._rows.places()

    def prompt_places(self, row: int) -> Tensor:
        """Places of the ids of a row's prompt, [ids, PLACES], for a model that mixes."""
        return self._rows.prompt_places(row)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Tensor], modality: Tensor | None = None) -> Tensor:
        """Start every row with its prompt, whose ids run in parallel; forget what rows held.

        Args:
            prompts: one int64 tensor [ids] for each row; lengths may differ and may be 0.
            modality: [B], the code of the modality of each row's last id (0 where there is none),
                for a model with `modality_heads`. It holds until another is given.

        Returns:
            Logits of each row's next id by the network, [B, V] float32.

        Raises:
            ValueError: the number of prompts is not that of rows, or a prompt is too long.
        """
        self._hold(prompts, modality)
        of_rows: dict[int, Tensor] = {}
        for rows in self._rows.with_same_prompts():
            of_rows |= dict.fromkeys(rows, self._prompt_logits(rows))
        return torch.cat([of_rows[row] for row in range(self.batch)])

    @torch.no_grad()
    def prefill_whole(
        self, prompts: Sequence[Tensor], modality: Tensor | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """`prefill`, with the logits of all ids of each prompt.

        Yields:
            the rows that have the prompt, and [ids + 1, V] float32, the next id's last. A step has
            to wait until all are taken.
        """
        self._hold(prompts, modality)
        for rows in self._rows.with_same_prompts():
            yield rows, self._prompt_logits(rows, is_whole=True)

    def _hold(self, prompts: Sequence[Tensor], modality: Tensor | None) -> None:
        """Start every row with the ids of its prompt; no cache is filled yet."""
        if len(prompts) != self.batch:
            raise ValueError(f"{len(prompts)} prompts for {self.batch} rows: give one for each row")
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.length:
            raise ValueError(
                f"a prompt of {longest} ids is longer than the decoder's {self.length}: cut it, or "
                "make the decoder longer"
            )
        self._rows.set_modality(modality)
        self._rows.begin(prompts)
        self._longest = longest

    def step(self, ids: Tensor, modality: Tensor | None = None) -> Tensor:
        """Append one id to each row.

        Args:
            ids: [B] int64.
            modality: [B], the modality of these ids, if it differs from that of the preceding ids.

        Returns:
            Logits of each row's next id, [B, V] float32. After the last of `length` ids they are
            those of the id that would follow.

        Raises:
            ValueError: before `prefill`, for another shape of ids, and where a row is full.
        """
        if self._longest < 0:
            raise ValueError("the decoder holds no rows yet: call prefill (prompts may be empty)")
        if ids.shape != (self.batch,):
            raise ValueError(
                f"a step takes one id for each of {self.batch} rows, got {list(ids.shape)}"
            )
        if self._longest >= self.length:
            raise ValueError(f"a row is full: it holds the decoder's {self.length} ids")
        if modality is not None:
            self._rows.set_modality(modality)
        self._longest += 1
        return self._steps.step(ids)

    # --- prompts ---

    def _prompt_logits(self, rows: Sequence[int], is_whole: bool = False) -> Tensor:
        """Run the prompt that some rows have in common, fill their caches, and return the logits of
        the next id, [1, V], or behind those of the prompt's ids."""
        row = rows[0]
        held = int(self._rows.held[row])
        start = 0  # the first id of the first position that a stage runs
        at, output, newest = 0, torch.empty(0), torch.empty(0)
        for index, stage in enumerate(self.model.stages):
            if index == 0:
                n = held // stage.position_bytes + 1
            else:
                for other in rows:
                    self._steps.set_parent_output(index, newest, other)
                if not (stage.cross_patch_keys or is_whole):  # only the newest sequence matters
                    output = newest
                n = len(output) * stage.sequence_length
            output = self._prefill_stage(index, row, start, n, output)
            at = (held - start) // stage.position_bytes
            newest = output[at : at + 1]
            if not (self.model.config.cross_patch_attention or is_whole):
                start += at * stage.position_bytes
            self._copy_caches(index, rows)
        hidden = output[: at + 1] if is_whole else newest
        modality = torch.full((len(hidden),), self._rows.modality[row], device=hidden.device)
        return self.model.output(hidden, modality).float()

    def _copy_caches(self, index: int, rows: Sequence[int]) -> None:
        """Copy the keys and values of stage `index` from the first of some rows to the others."""
        filled = self._steps.kv_caches(index, rows[0])
        for row in rows[1:]:
            for cache, source in zip(self._steps.kv_caches(index, row), filled, strict=True):
                cache.keys.copy_(source.keys)
                cache.values.copy_(source.values)

    def _prefill_stage(
        self, index: int, row: int, start: int, n: int, parent_output: Tensor
    ) -> Tensor:
        """Run a stage over `n` positions of a row, the first of which begins at the id `start`.

        Args:
            parent_output: [Q, m * d], for the Q sequences of these positions; not read by stage 0.

        Returns:
            [n, D].
        """
        stage, rows = self.model.stages[index], self._rows
        size, ids = stage.position_bytes, rows.ids[row]
        begin = start + torch.arange(n, device=ids.device) * size  # the first id of each position
        window = torch.arange(-stage.input_window, 0, device=ids.device)
        preceding_ids = ids[begin[:, None] + window + rows.lookback]
        codec_features = None
        if stage.feature_embed is not None:
            codec_features = rows.prompt_features(row)[begin]
        slices = None
        if index:
            slices = rearrange(parent_output, "Q (m d) -> (Q m) d", m=stage.sequence_length)
        newest = (int(rows.held[row]) - start) // size
        contexts = self._prefill_contexts(index, row, n, newest)
        return stage(preceding_ids, begin // size, codec_features, slices, contexts)

    def _prefill_contexts(self, index: int, row: int, n: int, newest: int) -> list[PrefillContext]:
        """Contexts of a stage's layers for `n` positions that fill the caches of a row.

        Args:
            newest: the position of n at which the row stands.
        """
        stage, slots = self.model.stages[index], self._slots[index]
        length = slots.current if index else n
        contexts: Sequence[AttentionContext]
        if stage.cross_patch_keys:
            opens_document = torch.arange(n // length, device=self._rows.ids.device) == 0
            contexts = stage.cross_patch_contexts(opens_document, iter(()))
        else:
            packed = PackedContext([(n // length, length)], stage.attention_window)
            contexts = [packed] * len(stage.blocks)
        return [
            PrefillContext(cache, slots, context, length, newest)
            for cache, context in zip(self._steps.kv_caches(index, row), contexts, strict=True)
        ]
