"""Steps of the decoder by PyTorch's operations: in bf16, in float64, and on a GPU.

Shapes:
    B   rows of the decoder      R   rows that a stage advances
    m   positions in a sequence of a stage: a row for stage 0, else a position of its parent
    r   positions of the preceding sequence that a position attends to
    D   width of a stage         H   heads of c channels
    V   vocabulary
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bytelm.model.decoding.cached_stage import CachedStage
from bytelm.model.decoding.decoded_rows import DecodedRows
from bytelm.model.decoding.kv_cache import AlignedRows, CacheSlots, KVCache, RaggedRows
from bytelm.model.decoding.packed_linear import PackedLinear
from bytelm.model.layers import compute_dtype, linear_by_modality
from bytelm.model.megabyte import Megabyte


class ModuleSteps:
    """All stages of a model for new positions of B rows.

    Rows that hold equally many ids run together, which is fastest.

    Args:
        model: its weights are copied as they are, in the type of products.
        rows: what the rows hold; a step appends to it.
        slots: of the caches of each stage.
    """

    def __init__(self, model: Megabyte, rows: DecodedRows, slots: Sequence[CacheSlots]) -> None:
        weight = model.lm_head.weight.detach()
        dtype = compute_dtype(weight)
        self._rows = rows
        self._has_features = model.config.codec_features
        self._stages = [
            CachedStage(stage, len(rows.held), of_stage, dtype)
            for stage, of_stage in zip(model.stages, slots, strict=True)
        ]
        heads = weight.chunk(max(1, model.config.modality_heads))
        self._heads = [PackedLinear(head, dtype) for head in heads]

    def kv_caches(self, index: int, row: int) -> list[KVCache]:
        """The row's keys and values in each block of stage `index`, views of [H, r + m, c]."""
        return [block.cache.row(row, block.heads) for block in self._stages[index].blocks]

    def set_parent_output(self, index: int, output: Tensor, row: int) -> None:
        """Keep the output [1, width] of the parent of stage `index`, for a row's new sequence."""
        self._stages[index].set_parent_output(output, [row])

    @torch.no_grad()
    def step(self, new_ids: Tensor) -> Tensor:
        """Append an id to each row, [B] int64; returns the logits of the next ones, [B, V]."""
        rows = self._rows
        if rows.is_aligned:
            rows.ids.select(1, rows.lookback + int(rows.held[0])).copy_(new_ids)
        else:
            ends = torch.from_numpy(rows.held + rows.lookback).to(new_ids.device)
            rows.ids[torch.arange(len(ends), device=new_ids.device), ends] = new_ids
        rows.held += 1
        rows.push_features(new_ids)
        return self._logits(self._advance())

    def _advance(self) -> Tensor:
        """Run each stage in the rows where it reaches a new position.

        Returns:
            Output of the last stage, which does so in every row, [B, D].
        """
        output, held = torch.empty(0), self._rows.held.tolist()
        features = torch.from_numpy(self._rows.codec_features()).to(self._rows.ids.device)
        advance_stage = self._advance_aligned if self._rows.is_aligned else self._advance_ragged
        for index, stage in enumerate(self._stages):
            rows = [row for row, count in enumerate(held) if count % stage.position_bytes == 0]
            if rows:
                output = advance_stage(index, rows, held, features)
                if index + 1 < len(self._stages):
                    self._stages[index + 1].set_parent_output(output, rows)
        return output

    def _advance_aligned(
        self, index: int, rows: list[int], held: list[int], features: Tensor
    ) -> Tensor:
        """Run a stage for the new position of all `rows`, which hold equally many ids."""
        stage = self._stages[index]
        position = held[0] // stage.position_bytes
        offset = position % stage.sequence_length
        is_first = position < stage.sequence_length
        end = self._rows.lookback + held[0]
        preceding_ids = self._rows.ids[:, end - stage.stage.input_window : end]
        return stage.advance(
            stage.token_input(preceding_ids, position, features if stage.feature_in else None),
            stage.parent_input[:, offset] if index else None,
            stage.rope(position),
            AlignedRows(stage.slots, offset, is_first=is_first),
        )

    def _advance_ragged(
        self, index: int, rows: list[int], held: list[int], features: Tensor
    ) -> Tensor:
        """Run a stage for its new position in each of `rows`."""
        stage = self._stages[index]
        positions = [held[row] // stage.position_bytes for row in rows]
        offsets = [position % stage.sequence_length for position in positions]
        is_first = [position < stage.sequence_length for position in positions]
        token_inputs = []
        for row, position in zip(rows, positions, strict=True):
            codec_features = features[row : row + 1] if stage.feature_in else None
            end = self._rows.lookback + held[row]
            preceding_ids = self._rows.ids[row : row + 1, end - stage.stage.input_window : end]
            token_inputs.append(stage.token_input(preceding_ids, position, codec_features))
        return stage.advance(
            torch.cat(token_inputs),
            stage.parent_input[rows, offsets] if index else None,
            stage.stage.rope(torch.tensor(positions, device=self._rows.ids.device)),
            RaggedRows(stage.slots, rows, offsets, is_first),
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, V] float32 of the last stage's output [B, D]."""
        if len(self._heads) == 1:
            return self._heads[0](hidden).float()
        modality = torch.from_numpy(self._rows.modality).to(hidden.device)
        return linear_by_modality(hidden, modality, self._heads).float()
