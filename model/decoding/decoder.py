"""Decoding with a cache for every stage: a step runs only the stages that reach a new position.

Shapes:
    B   rows of the decoder      R   rows that a stage advances
    b   bytes in a position of the stage
    m   places in a sequence of the stage: a row for stage 0, else a position of its parent
    Q   sequences of a row       n   places that are filled
    r   places that are seen of the sequence before
    D   width of the stage       H   heads of c channels
    p   slices of d channels in an output of a stage, one for each place of the stage below
    V   vocabulary           J   hints of an id

A row that holds t ids waits for the logits of id t. Stage i then stands at position t // b_i and
its input is the position before, so that it advances exactly when t is a multiple of b_i.

Prompts run through the model's own layers, steps through those of `stepping.py`. In fp32 on a CPU
the logits of a row are the same, to the last bit, alone and in any batch of up to ALIKE_ROWS:
prompts run one after another, and what a step does for such rows it does for each as if alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from bytelm.model.attention_context import AttentionContext, PackedContext
from bytelm.model.codec_features.incremental import IncrementalFeatures
from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.decoding.step import (
    ALIKE_ROWS,
    AlignedRows,
    CachedBlock,
    CachedStage,
    PackedLinear,
    RaggedRows,
)
from bytelm.model.layers import Stage, compute_dtype
from bytelm.model.megabyte import Megabyte


@dataclass(frozen=True)
class PrefillContext:
    """What training sees, over Q sequences of n places of one row, filling its cache.

    newest: the place of Q * n at which the row stands; the cache takes its sequence.
    """

    cache: CachedBlock
    row: int
    inner: AttentionContext
    n: int
    newest: int

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cache, r, at = self.cache, self.cache.back, self.newest // self.n
        for cached, new in zip(cache.of_row(self.row), (keys, values), strict=True):
            each = rearrange(new, "(Q n) H c -> Q H n c", n=self.n)
            cached[:, r : r + self.n] = each[at]
            cached[:, :r] = each[max(at - 1, 0), :, self.n - r :]
        return self.inner.attend(queries, keys, values)


class Decoder:
    """Decodes `batch` rows, each one document from its start, with static caches.

    model: in evaluation mode where it has dropout. Its weights are taken as they are now.
    length: the ids that a row can hold, at most the model's context, which is the default.

    Under autocast products have autocast's type, so make and use a decoder inside one context.
    Rows that hold equally many ids run together, at the best speed.
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

        patches = self.length // config.patch + 1  # the last one is not yet whole
        self._stages = [
            CachedStage(stage, batch, places, dtype)
            for stage, places in zip(model.stages, (patches, *config.patch_sizes), strict=True)
        ]
        heads = weight.chunk(max(1, config.modality_heads))
        alike = batch <= ALIKE_ROWS
        self._outputs = [PackedLinear(head, dtype, row_by_row=alike) for head in heads]
        self._ids = weight.new_full(  # behind -1, which stands before a document's start
            (batch, model.back + patches * config.patch), config.pad_id, dtype=torch.int64
        )
        self._ids[:, : model.back] = -1
        self._rows = torch.arange(batch, device=weight.device)
        self._modality = self._rows
        self._head: int | None = 0  # the one that all rows have
        self._held: list[int] = []  # ids in each row; empty before `prefill`
        self._cursors: list[IncrementalFeatures] = []

    @property
    def positions(self) -> Tensor:
        """[B] int64: the ids that each row holds."""
        return torch.tensor(self._held, dtype=torch.int64, device=self._ids.device)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Tensor], modality: Tensor | None = None) -> Tensor:
        """Starts every row with its prompt, whose ids run in parallel, forgetting what it held.

        prompts: one int64 tensor [ids] for each row; lengths may differ and may be 0.
        modality [B]: the code of the modality of each row's last id (0 where there is none), for
            a model with `modality_heads`; it holds until another is given.

        Returns the logits of each row's next id, [B, V] float32. Raises ValueError for another
        number of prompts than rows, and for a prompt longer than `length`.
        """
        if len(prompts) != self.batch:
            raise ValueError(f"{len(prompts)} prompts for {self.batch} rows: give one for each row")
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.length:
            raise ValueError(
                f"a prompt of {longest} ids is longer than the decoder's {self.length}: cut it, or "
                "make the decoder longer"
            )
        self._take_modality(modality)
        for row, prompt in zip(self._ids, prompts, strict=True):
            row[self.model.back : self.model.back + len(prompt)] = prompt
        self._held = [len(prompt) for prompt in prompts]
        self._cursors = [IncrementalFeatures(self.model.config.patch) for _ in prompts]
        self._push(prompts)
        return self._logits(torch.cat([self._prefill_row(row) for row in range(self.batch)]))

    def _prefill_row(self, row: int) -> Tensor:
        """The last stage's output [1, D] at the place where a row stands; fills its caches."""
        held, opens = self._held[row], 0  # the id at which the stage begins
        output = newest = torch.empty(0)
        for index, stage in enumerate(self._stages):
            if index:
                stage.above[row] = stage.spread(newest)[0]
            if index == 0:
                n = held // stage.bytes + 1
            elif stage.back:  # what is seen of a sequence has seen the one before
                n = len(output) * stage.places
            else:
                output, n = newest, stage.places
            output = self._fill(index, row, opens, n, output)
            at = (held - opens) // stage.bytes
            newest = output[at : at + 1]
            if not self.model.config.cross_patch_attention:
                opens += at * stage.bytes
        return newest

    def _fill(self, index: int, row: int, opens: int, n: int, above: Tensor) -> Tensor:
        """Runs a stage over the `n` places of a row that begin at the id `opens`.

        above: the output of the stage above, [Q, p * d], for the Q sequences of these places.

        Returns [n, D].
        """
        step = self._stages[index]
        stage, b = step.stage, step.bytes
        width = n if index == 0 else step.places  # of a sequence
        end = opens + torch.arange(n, device=self._ids.device) * b
        place = end // b
        context = PackedContext([(n // width, width)], stage.attention_window)
        inner: Sequence[AttentionContext] = [context] * len(stage.blocks)
        if stage.back:
            opening = torch.arange(n // width, device=end.device) == 0
            inner = stage.cross_patch_contexts(opening, iter(()))
        newest = (self._held[row] - opens) // b
        contexts = [
            PrefillContext(layer, row, context, width, newest)
            for layer, context in zip(step.layers, inner, strict=True)
        ]
        slices = rearrange(above, "Q (p d) -> (Q p) d", p=width) if index else None
        before = self._before(torch.full_like(end, row), end, stage)
        codec_features = None
        if stage.feature_embed is not None:
            ids = self._ids[row : row + 1, self.model.back :]
            codec_features = compute_codec_features(
                ids, torch.zeros_like(ids[:, :1]), self.model.config.patch
            )[0, end]
        return stage(before, place, codec_features, slices, contexts)

    def _before(self, rows: Tensor, end: Tensor, stage: Stage) -> Tensor:
        """The ids that a stage reads before the ids `end` [...] of `rows` [...]: [..., window]."""
        at = torch.arange(-stage.window, 0, device=end.device) + self.model.back
        return self._ids[rows[..., None], end[..., None] + at]

    def _push(self, ids: Sequence[Tensor]) -> None:
        """Gives the cursors what is new in their rows."""
        if not self.model.config.codec_features:
            return
        for cursor, of_row in zip(self._cursors, ids, strict=True):
            for id_ in of_row.tolist():
                cursor.push(id_)

    def _codec_features(self, rows: Sequence[int]) -> Tensor:
        """Of the next id of rows, [R, J]."""
        made = [self._cursors[row].codec_features() for row in rows]
        return torch.tensor(made, device=self._ids.device)

    @torch.no_grad()
    def step(self, ids: Tensor, modality: Tensor | None = None) -> Tensor:
        """Appends `ids` [B] int64, one to each row; returns the next logits, [B, V] float32.

        modality [B]: that of these ids, where it is another than that of the ids before.
        After the last of `length` ids the logits are those of the id that would follow. Raises
        ValueError before `prefill`, for another shape, and where a row is full.
        """
        if not self._held:
            raise ValueError("the decoder holds no rows yet: call prefill (prompts may be empty)")
        if ids.shape != (self.batch,):
            raise ValueError(
                f"a step takes one id for each of {self.batch} rows, got {list(ids.shape)}"
            )
        lowest, highest = min(self._held), max(self._held)
        if highest >= self.length:
            raise ValueError(f"a row is full: it holds the decoder's {self.length} ids")
        if modality is not None:
            self._take_modality(modality)
        if lowest == highest:
            self._ids.select(1, self.model.back + lowest).copy_(ids)
        else:
            self._ids[self._rows, self.positions + self.model.back] = ids
        self._held = [held + 1 for held in self._held]
        self._push(ids[:, None].unbind())
        output = torch.empty(0)
        for index, stage in enumerate(self._stages):
            if lowest == highest:
                if (lowest + 1) % stage.bytes == 0:
                    output = self._advance_together(index, lowest + 1)
            else:
                rows = [row for row, held in enumerate(self._held) if held % stage.bytes == 0]
                if rows:
                    output = self._advance_apart(index, rows)
        return self._logits(output)

    def _advance_together(self, index: int, held: int) -> Tensor:
        """Runs a stage for the new position of all rows, which hold `held` ids."""
        stage, end = self._stages[index], self.model.back + held
        place = held // stage.bytes
        at = place % stage.places
        to = AlignedRows(stage, at, opens=place < stage.places)
        codec_features = self._codec_features(range(self.batch)) if stage.feature_in else None
        own = stage.own_input(self._ids[:, end - stage.stage.window : end], place, codec_features)
        above = stage.above[:, at] if index else None
        output = stage.advance(own, above, stage.rope(place), to)
        for below in self._stages[index + 1 : index + 2]:
            below.above = below.spread(output)
        return output

    def _advance_apart(self, index: int, rows: list[int]) -> Tensor:
        """Runs a stage for its new position in each of `rows`."""
        stage, end = self._stages[index], [self.model.back + self._held[row] for row in rows]
        places = [self._held[row] // stage.bytes for row in rows]
        at = [place % stage.places for place in places]
        to = RaggedRows(stage, rows, at, [place < stage.places for place in places])
        codec_features = (
            self._codec_features(rows).split(1) if stage.feature_in else [None] * len(rows)
        )
        own = [
            stage.own_input(
                self._ids[row : row + 1, stop - stage.stage.window : stop], place, of_row
            )
            for row, stop, place, of_row in zip(rows, end, places, codec_features, strict=True)
        ]
        above = stage.above[rows, at] if index else None
        rope = stage.stage.rope(torch.tensor(places, device=self._ids.device))
        output = stage.advance(torch.cat(own), above, rope, to)
        for below in self._stages[index + 1 : index + 2]:
            below.above[rows] = below.spread(output)
        return output

    def _take_modality(self, modality: Tensor | None) -> None:
        self._modality = self.model.check_modality(modality, self._rows.shape)
        codes = self._modality.unique().tolist()
        self._head = codes[0] if len(codes) == 1 else None

    def _logits(self, hidden: Tensor) -> Tensor:
        if self._head is not None:
            return self._outputs[self._head](hidden).float()
        logits = hidden.new_empty(len(hidden), self.model.config.vocab_size, dtype=torch.float32)
        for code in self._modality.unique().tolist():
            rows = (self._modality == code).nonzero().squeeze(1)
            logits[rows] = self._outputs[code](hidden[rows]).float()
        return logits
