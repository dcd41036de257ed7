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

Prompts run through the stages of training, steps through those of `cached_stage.py`. In fp32 on a
CPU the logits of a row are bit-identical alone and in any batch of up to BIT_IDENTICAL_ROWS:
prompts run one after another, and a step computes each of so few rows as if it were alone.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from bytelm.model.attention_context import AttentionContext, PackedContext
from bytelm.model.codec_features.incremental import IncrementalFeatures
from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.decoding.cached_stage import CachedStage
from bytelm.model.decoding.kv_cache import AlignedRows, PrefillContext, RaggedRows
from bytelm.model.decoding.packed_linear import BIT_IDENTICAL_ROWS, PackedLinear
from bytelm.model.layers import compute_dtype, linear_by_modality
from bytelm.model.megabyte import Megabyte


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
        weight = model.lm_head.weight.detach()
        dtype = compute_dtype(weight)

        patches = self.length // config.patch + 1  # the last one is not yet complete
        lengths = (patches, *config.patch_sizes)
        self._stages = [
            CachedStage(stage, batch, length, dtype)
            for stage, length in zip(model.stages, lengths, strict=True)
        ]
        row_by_row = batch <= BIT_IDENTICAL_ROWS
        self._heads = [
            PackedLinear(head, dtype, row_by_row=row_by_row)
            for head in weight.chunk(max(1, config.modality_heads))
        ]
        self._modality = torch.zeros(batch, dtype=torch.int64)  # of each row's last id
        self._shared_head: int | None = 0  # the head of all rows, where they have the same
        # The ids of each row, behind `lookback_bytes` times -1 for the start of the document.
        self._ids = weight.new_full(
            (batch, model.lookback_bytes + patches * config.patch),
            config.pad_id,
            dtype=torch.int64,
        )
        self._ids[:, : model.lookback_bytes] = -1
        self._held: list[int] = []  # ids in each row; empty before `prefill`
        self._features: list[IncrementalFeatures] = []  # of each row

    @property
    def positions(self) -> Tensor:
        """[B] int64, the number of ids that each row holds."""
        return torch.tensor(self._held, dtype=torch.int64, device=self._ids.device)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Tensor], modality: Tensor | None = None) -> Tensor:
        """Start every row with its prompt, whose ids run in parallel; forget what rows held.

        Args:
            prompts: one int64 tensor [ids] for each row; lengths may differ and may be 0.
            modality: [B], the code of the modality of each row's last id (0 where there is none),
                for a model with `modality_heads`. It holds until another is given.

        Returns:
            Logits of each row's next id, [B, V] float32.

        Raises:
            ValueError: the number of prompts is not that of rows, or a prompt is too long.
        """
        if len(prompts) != self.batch:
            raise ValueError(f"{len(prompts)} prompts for {self.batch} rows: give one for each row")
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.length:
            raise ValueError(
                f"a prompt of {longest} ids is longer than the decoder's {self.length}: cut it, or "
                "make the decoder longer"
            )
        self._set_modality(modality)
        start = self.model.lookback_bytes
        for row, prompt in zip(self._ids, prompts, strict=True):
            row[start : start + len(prompt)] = prompt
        self._held = [len(prompt) for prompt in prompts]
        self._features = [IncrementalFeatures(self.model.config.patch) for _ in prompts]
        self._push_features(prompts)
        return self._logits(torch.cat([self._prefill_row(row) for row in range(self.batch)]))

    @torch.no_grad()
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
        if not self._held:
            raise ValueError("the decoder holds no rows yet: call prefill (prompts may be empty)")
        if ids.shape != (self.batch,):
            raise ValueError(
                f"a step takes one id for each of {self.batch} rows, got {list(ids.shape)}"
            )
        if max(self._held) >= self.length:
            raise ValueError(f"a row is full: it holds the decoder's {self.length} ids")
        if modality is not None:
            self._set_modality(modality)
        self._append(ids)
        return self._logits(self._advance())

    def _append(self, ids: Tensor) -> None:
        """Write ids [B] behind those that the rows hold."""
        start = self.model.lookback_bytes
        if self._is_aligned():
            self._ids.select(1, start + self._held[0]).copy_(ids)
        else:
            rows = torch.arange(self.batch, device=self._ids.device)
            self._ids[rows, self.positions + start] = ids
        self._held = [held + 1 for held in self._held]
        self._push_features(ids[:, None].unbind())

    def _is_aligned(self) -> bool:
        """Whether all rows hold equally many ids."""
        return min(self._held) == max(self._held)

    # --- prompts ---

    def _prefill_row(self, row: int) -> Tensor:
        """Run a row's prompt and fill its caches.

        Returns:
            Output of the last stage at the position where the row stands, [1, D].
        """
        held = self._held[row]
        start = 0  # the first id of the first position that a stage runs
        output = newest = torch.empty(0)
        for index, stage in enumerate(self._stages):
            if index == 0:
                n = held // stage.position_bytes + 1
            else:
                stage.set_parent_output(newest, [row])
                if not stage.stage.cross_patch_keys:  # only the newest sequence matters
                    output = newest
                n = len(output) * stage.sequence_length
            output = self._prefill_stage(index, row, start, n, output)
            at = (held - start) // stage.position_bytes
            newest = output[at : at + 1]
            if not self.model.config.cross_patch_attention:
                start += at * stage.position_bytes
        return newest

    def _prefill_stage(
        self, index: int, row: int, start: int, n: int, parent_output: Tensor
    ) -> Tensor:
        """Run a stage over `n` positions of a row, the first of which begins at the id `start`.

        Args:
            parent_output: [Q, m * d], for the Q sequences of these positions; not read by stage 0.

        Returns:
            [n, D].
        """
        cached = self._stages[index]
        stage, size = cached.stage, cached.position_bytes
        ids = self._ids[row]
        begin = start + torch.arange(n, device=ids.device) * size  # the first id of each position
        window = torch.arange(-stage.input_window, 0, device=ids.device)
        preceding_ids = ids[begin[:, None] + window + self.model.lookback_bytes]
        codec_features = None
        if stage.feature_embed is not None:
            codec_features = self._prompt_features(row)[begin]
        slices = None
        if index:
            slices = rearrange(parent_output, "Q (m d) -> (Q m) d", m=cached.sequence_length)
        newest = (self._held[row] - start) // size
        contexts = self._prefill_contexts(index, row, n, newest)
        return stage(preceding_ids, begin // size, codec_features, slices, contexts)

    def _prefill_contexts(self, index: int, row: int, n: int, newest: int) -> list[PrefillContext]:
        """Contexts of a stage's layers for `n` positions that fill the caches of a row.

        Args:
            newest: the position of n at which the row stands.
        """
        cached = self._stages[index]
        stage = cached.stage
        length = cached.sequence_length if index else n
        contexts: Sequence[AttentionContext]
        if stage.cross_patch_keys:
            opens_document = torch.arange(n // length, device=self._ids.device) == 0
            contexts = stage.cross_patch_contexts(opens_document, iter(()))
        else:
            packed = PackedContext([(n // length, length)], stage.attention_window)
            contexts = [packed] * len(stage.blocks)
        return [
            PrefillContext(block.cache.row(row, block.heads), cached.slots, context, length, newest)
            for block, context in zip(cached.blocks, contexts, strict=True)
        ]

    def _prompt_features(self, row: int) -> Tensor:
        """Codec features of all ids of a row, [ids, J]."""
        ids = self._ids[row : row + 1, self.model.lookback_bytes :]
        one_document = torch.zeros_like(ids[:, :1])
        return compute_codec_features(ids, one_document, self.model.config.patch)[0]

    # --- steps ---

    def _advance(self) -> Tensor:
        """Run each stage in the rows where it reaches a new position.

        Returns:
            Output of the last stage, which does so in every row, [B, D].
        """
        output = torch.empty(0)
        advance_stage = self._advance_aligned if self._is_aligned() else self._advance_ragged
        for index, stage in enumerate(self._stages):
            size = stage.position_bytes
            rows = [row for row, held in enumerate(self._held) if held % size == 0]
            if rows:
                output = advance_stage(index, rows)
                if index + 1 < len(self._stages):
                    self._stages[index + 1].set_parent_output(output, rows)
        return output

    def _advance_aligned(self, index: int, rows: list[int]) -> Tensor:
        """Run a stage for the new position of all `rows`, which hold equally many ids."""
        stage, held = self._stages[index], self._held[0]
        position = held // stage.position_bytes
        offset = position % stage.sequence_length
        is_first = position < stage.sequence_length
        codec_features = self._codec_features(rows) if stage.feature_in else None
        end = self.model.lookback_bytes + held
        preceding_ids = self._ids[:, end - stage.stage.input_window : end]
        return stage.advance(
            stage.token_input(preceding_ids, position, codec_features),
            stage.parent_input[:, offset] if index else None,
            stage.rope(position),
            AlignedRows(stage.slots, offset, is_first=is_first),
        )

    def _advance_ragged(self, index: int, rows: list[int]) -> Tensor:
        """Run a stage for its new position in each of `rows`."""
        stage = self._stages[index]
        positions = [self._held[row] // stage.position_bytes for row in rows]
        offsets = [position % stage.sequence_length for position in positions]
        is_first = [position < stage.sequence_length for position in positions]
        token_inputs = []
        for row, position in zip(rows, positions, strict=True):
            codec_features = self._codec_features([row]) if stage.feature_in else None
            end = self.model.lookback_bytes + self._held[row]
            preceding_ids = self._ids[row : row + 1, end - stage.stage.input_window : end]
            token_inputs.append(stage.token_input(preceding_ids, position, codec_features))
        return stage.advance(
            torch.cat(token_inputs),
            stage.parent_input[rows, offsets] if index else None,
            stage.stage.rope(torch.tensor(positions, device=self._ids.device)),
            RaggedRows(stage.slots, rows, offsets, is_first),
        )

    def _push_features(self, ids: Sequence[Tensor]) -> None:
        """Append new ids, a tensor for each row, to the rows' codec features."""
        if not self.model.config.codec_features:
            return
        for features, new_ids in zip(self._features, ids, strict=True):
            for id_ in new_ids.tolist():
                features.push(id_)

    def _codec_features(self, rows: Sequence[int]) -> Tensor:
        """Codec features of the next id of each of `rows`, [R, J]."""
        features = [self._features[row].codec_features() for row in rows]
        return torch.tensor(features, device=self._ids.device)

    def _set_modality(self, modality: Tensor | None) -> None:
        """Check and keep the modality of each row's last id."""
        self._modality = self.model.check_modality(modality, torch.Size([self.batch]))
        codes = self._modality.unique().tolist()
        self._shared_head = codes[0] if len(codes) == 1 else None

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, V] float32 of the last stage's output [B, D]."""
        if self._shared_head is not None:
            return self._heads[self._shared_head](hidden).float()
        modality = self._modality.to(hidden.device)
        return linear_by_modality(hidden, modality, self._heads).float()
