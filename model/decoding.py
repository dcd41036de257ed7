"""Decoding with a cache for every stage: a step runs only the stages that reach a new position.

Shapes:
    B   rows of the decoder      R   rows that a stage advances
    b   bytes in a position of the stage
    m   places in a sequence of the stage: a row for stage 0, else a position of its parent
    Q   sequences of a row       n   places that are filled or looked at
    r   places that are seen of the sequence before
    D   width of the stage       H   heads of c channels
    p   slices of d channels in an output of a stage, one for each place of the stage below
    V   vocabulary

A row that holds t ids waits for the logits of id t. Stage i then stands at position t // b_i and
its input is the position before, so that it advances exactly when t is a multiple of b_i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from bytelm.model.layers import Past, SegmentPast, Stage
from bytelm.model.megabyte import Megabyte


class LayerCache:
    """Keys and values of one layer, [B, H, r + m, c]: r of the sequence before, then its own."""

    def __init__(self, shape: tuple[int, int, int, int], back: int, like: Tensor) -> None:
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.shifted: dict[int, Tensor] = {}  # [B, D / 2] by sublayer, of the newest place
        self.back = back


class StageCache:
    """The caches of a stage's layers, for sequences of up to m `places`."""

    def __init__(self, stage: Stage, batch: int, places: int, like: Tensor) -> None:
        self.stage = stage
        self.places = places
        self.layers = []
        for block in stage.blocks:
            shape = (batch, block.attention.heads, stage.back + places, stage.channels)
            self.layers.append(LayerCache(shape, stage.back, like))


@dataclass(frozen=True)
class FillingPast:
    """What training sees, over Q sequences of n places in each row, filling the cache.

    newest [B]: the place of Q * n at which each row stands; the cache takes its sequence.
    """

    cache: LayerCache
    inner: Past
    n: int
    newest: Tensor

    def before(self, x: Tensor, sublayer: int) -> Tensor:
        by_row = rearrange(x, "(B n) d -> B n d", B=len(self.newest))
        rows = torch.arange(len(by_row), device=x.device)
        self.cache.shifted[sublayer] = by_row[rows, self.newest]
        return self.inner.before(x, sublayer)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cache, r, at = self.cache, self.cache.back, self.newest // self.n
        rows, before = torch.arange(len(at), device=at.device), (at - 1).clamp(min=0)
        k, v = (
            rearrange(each, "(B Q n) H c -> B Q H n c", B=len(rows), n=self.n)
            for each in (keys, values)
        )
        cache.keys[:, :, r : r + self.n] = k[rows, at]
        cache.values[:, :, r : r + self.n] = v[rows, at]
        cache.keys[:, :, :r] = k[rows, before, :, self.n - r :]
        cache.values[:, :, :r] = v[rows, before, :, self.n - r :]
        return self.inner.attend(queries, keys, values)


class Appended:
    """Where a stage puts one new place of each of R `rows`, and what that place sees.

    opens: whether the row's sequence is its first, which has none before.
    """

    def __init__(
        self, rows: Sequence[int], places: Sequence[int], opens: Sequence[bool], stage: StageCache
    ) -> None:
        back, device = stage.stage.back, stage.layers[0].keys.device
        self.begins = [row for row, place in zip(rows, places, strict=True) if place == 0 and back]
        self.rows = torch.tensor(rows, device=device)
        self.first = torch.tensor(places, device=device) == 0
        self.slots = torch.tensor(places, device=device) + back
        window = stage.stage.attention_window or stage.places + back
        lowest = [
            max(back if is_first else 0, place + back + 1 - window)
            for place, is_first in zip(places, opens, strict=True)
        ]
        self.seen = slice(min(lowest), back + max(places) + 1)
        self.is_whole = len(rows) == len(stage.layers[0].keys)
        self.is_even = min(places) == max(places) and min(lowest) == max(lowest)
        self.mask = None
        if not self.is_even:
            slot = torch.arange(self.seen.start, self.seen.stop, device=device)
            low = torch.tensor(lowest, device=device)[:, None]
            visible = (slot >= low) & (slot <= self.slots[:, None])  # [R, n]
            self.mask = rearrange(visible, "R n -> R 1 1 n")


@dataclass(frozen=True)
class AppendingPast:
    """What one new place in each of R rows sees of the cache, which takes the place up."""

    cache: LayerCache
    to: Appended

    def before(self, x: Tensor, sublayer: int) -> Tensor:
        kept, rows = self.cache.shifted[sublayer], self.to.rows
        before = kept[rows].masked_fill(self.to.first[:, None], 0.0)
        kept[rows] = x
        return before

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cache, to = self.cache, self.to
        if to.begins:
            last = slice(cache.keys.shape[2] - cache.back, None)
            cache.keys[to.begins, :, : cache.back] = cache.keys[to.begins, :, last]
            cache.values[to.begins, :, : cache.back] = cache.values[to.begins, :, last]
        if to.is_whole and to.is_even:
            cache.keys[:, :, to.seen.stop - 1] = keys
            cache.values[:, :, to.seen.stop - 1] = values
        else:
            cache.keys[to.rows, :, to.slots] = keys
            cache.values[to.rows, :, to.slots] = values
        k, v = cache.keys[:, :, to.seen], cache.values[:, :, to.seen]
        if not to.is_whole:
            k, v = k[to.rows], v[to.rows]
        q = rearrange(queries, "R H c -> R H 1 c")
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=to.mask, scale=1.0)
        return rearrange(output, "R H 1 c -> R H c")


class Decoder:
    """Decodes `batch` rows, each one document from its start, with static caches.

    model: in evaluation mode where it has dropout.
    length: the ids that a row can hold, at most the model's context, which is the default.

    Under autocast the caches have autocast's type, so make and use a decoder inside one context.
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
        weight = model.lm_head.weight
        device = weight.device.type
        autocast = torch.is_autocast_enabled(device)
        like = weight.new_zeros(0, dtype=torch.get_autocast_dtype(device) if autocast else None)

        patches = self.length // config.patch + 1  # the last one is not yet whole
        self._stages = [
            StageCache(stage, batch, places, like)
            for stage, places in zip(model.stages, (patches, *config.patch_sizes), strict=True)
        ]
        self._ids = weight.new_full(  # behind -1, which stands before a document's start
            (batch, model.back + patches * config.patch), config.pad_id, dtype=torch.int64
        )
        self._ids[:, : model.back] = -1
        self._rows = torch.arange(batch, device=weight.device)
        self._modality = self._rows
        self._held: list[int] = []  # ids in each row; empty before `prefill`
        self._newest: list[Tensor] = []  # [B, D], the newest output of each stage

    @property
    def positions(self) -> Tensor:
        """[B] int64: the ids that each row holds."""
        return torch.tensor(self._held, dtype=torch.int64, device=self._ids.device)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Tensor], modality: Tensor | None = None) -> Tensor:
        """Starts every row with its prompt, in parallel, forgetting what the rows held.

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
        self._modality = self.model.check_modality(modality, self._rows.shape)
        for row, prompt in zip(self._ids, prompts, strict=True):
            row[self.model.back : self.model.back + len(prompt)] = prompt
        self._held = [len(prompt) for prompt in prompts]

        self._newest = []
        output = torch.empty(0)
        opens = torch.zeros_like(self.positions)  # [B]: the id at which the stage begins
        for index, cache in enumerate(self._stages):
            b = cache.stage.bytes
            if index == 0:
                n = longest // b + 1
            elif cache.stage.back:  # what is seen of a sequence has seen the one before
                n = output.shape[1] * cache.places
            else:
                output, n = self._newest[-1][:, None], cache.places
            output = self._fill(index, opens, n, output)
            newest = (self.positions - opens) // b  # [B]
            self._newest.append(output[self._rows, newest])
            if not self.model.config.cross_patch_attention:
                opens = opens + newest * b
        return self._logits()

    def _fill(self, index: int, opens: Tensor, n: int, above: Tensor) -> Tensor:
        """Runs a stage over the `n` places that begin at the ids `opens` [B].

        above: the output of the stage above, [B, Q, p * d], for the Q sequences of these places.

        Returns [B, n, D].
        """
        cache = self._stages[index]
        stage, b = cache.stage, cache.stage.bytes
        width = n if index == 0 else cache.places  # of a sequence
        newest = (self.positions - opens) // b  # [B]
        end = opens[:, None] + torch.arange(n, device=opens.device) * b  # [B, n]
        before = rearrange(self._before(self._rows[:, None], end, stage), "B n w -> (B n) w")
        place = rearrange(end // b, "B n -> (B n)")
        count = n // width
        groups, first = [(self.batch * count, width)], stage.first(place)
        past = SegmentPast(groups, first, stage.attention_window)
        inner: Sequence[Past] = [past] * len(stage.blocks)
        if stage.back:
            is_first = torch.arange(count, device=opens.device) == 0
            opening = repeat(is_first, "Q -> (B Q)", B=self.batch)
            inner = stage.cross_patch_pasts(opening, first, iter(()))
        pasts = [
            FillingPast(layer, past, width, newest)
            for layer, past in zip(cache.layers, inner, strict=True)
        ]
        slices = rearrange(above, "B Q (p d) -> (B Q p) d", p=width) if index else None
        output = stage(before, place, slices, pasts)
        return rearrange(output, "(B n) D -> B n D", n=n)

    def _before(self, rows: Tensor, end: Tensor, stage: Stage) -> Tensor:
        """The ids that a stage reads before the ids `end` [...] of `rows` [...]: [..., window]."""
        at = torch.arange(-stage.window, 0, device=end.device) + self.model.back
        return self._ids[rows[..., None], end[..., None] + at]

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
        if max(self._held) >= self.length:
            raise ValueError(f"a row is full: it holds the decoder's {self.length} ids")
        if modality is not None:
            self._modality = self.model.check_modality(modality, self._rows.shape)
        self._ids[self._rows, self.positions + self.model.back] = ids
        self._held = [held + 1 for held in self._held]
        for index, cache in enumerate(self._stages):
            reached = [row for row, held in enumerate(self._held) if held % cache.stage.bytes == 0]
            if reached:
                self._advance(index, reached)
        return self._logits()

    def _advance(self, index: int, rows: list[int]) -> None:
        """Runs a stage for its new position in each of `rows`."""
        cache = self._stages[index]
        b = cache.stage.bytes
        places = [self._held[row] // b % cache.places for row in rows]
        opens = [self._held[row] // b < cache.places for row in rows]
        row = torch.tensor(rows, device=self._ids.device)
        above = None
        if index:
            slices = rearrange(self._newest[index - 1], "B (p d) -> B p d", p=cache.places)
            above = slices[row, torch.tensor(places, device=row.device)]
        end = self.positions[row]
        place, before = end // b, self._before(row, end, cache.stage)
        to = Appended(rows, places, opens, cache)
        pasts = [AppendingPast(layer, to) for layer in cache.layers]
        self._newest[index][row] = cache.stage(before, place, above, pasts)

    def _logits(self) -> Tensor:
        return self.model.output(self._newest[-1], self._modality).float()
