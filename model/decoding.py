"""Decoding with a cache for every stage: a step runs only the stages that reach a new position.

Shapes:
    B   rows of the decoder      R   rows that a stage advances
    b   bytes in a position of the stage
    m   places in a sequence of the stage: a row for stage 0, else a position of its parent
    n   places that are filled or looked at
    D   width of the stage       H   heads of c channels
    p   slices of d channels in an output of a stage, one for each place of the stage below
    V   vocabulary

A row that holds t ids waits for the logits of id t. Stage i then stands at position t // b_i and
its input is the position before, so that it advances exactly when t is a multiple of b_i.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from bytelm.model.layers import Attend, Stage
from bytelm.model.megabyte import Megabyte


class LayerCache:
    """The keys and values of one layer, [B, H, m, c]."""

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)

    def fill(self, n: int) -> Attend:
        """Causal attention over the first `n` places of every row, which it stores."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (rearrange(part, "(B n) H c -> B H n c", n=n) for part in (q, k, v))
            self.keys[:, :, :n] = k
            self.values[:, :, :n] = v
            output = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return rearrange(output, "B H n c -> (B n) H c")

        return attend

    def append(self, rows: Sequence[int], places: Sequence[int]) -> Attend:
        """Attention of one new place in each of `rows` to the places up to it."""
        n = max(places) + 1
        if len(rows) == len(self.keys) and min(places) + 1 == n:
            return self._append_in_step(n)
        row = torch.tensor(rows, device=self.keys.device)
        place = torch.tensor(places, device=self.keys.device)
        visible = torch.arange(n, device=place.device) <= place[:, None]  # [R, n]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[row, :, place] = k
            self.values[row, :, place] = v
            output = F.scaled_dot_product_attention(
                rearrange(q, "R H c -> R H 1 c"),
                self.keys[row, :, :n],
                self.values[row, :, :n],
                attn_mask=rearrange(visible, "R n -> R 1 1 n"),
            )
            return rearrange(output, "R H 1 c -> R H c")

        return attend

    def _append_in_step(self, n: int) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[:, :, n - 1] = k
            self.values[:, :, n - 1] = v
            q = rearrange(q, "B H c -> B H 1 c")
            output = F.scaled_dot_product_attention(q, self.keys[:, :, :n], self.values[:, :, :n])
            return rearrange(output, "B H 1 c -> B H c")

        return attend


class StageCache:
    """The caches of a stage's layers, for sequences of up to m `places`."""

    def __init__(self, stage: Stage, batch: int, places: int, like: Tensor) -> None:
        self.stage = stage
        self.places = places
        self.layers = []
        for block in stage.blocks:
            heads = block.attention.heads
            channels = block.attention.output.in_features // heads
            self.layers.append(LayerCache((batch, heads, places, channels), like))


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
        self._ids = weight.new_full(
            (batch, patches * config.patch), config.pad_id, dtype=torch.int64
        )
        self._rows = torch.arange(batch, device=weight.device)
        self._held: list[int] = []  # ids in each row; empty before `prefill`
        self._newest: list[Tensor] = []  # [B, D], the newest output of each stage

    @property
    def positions(self) -> Tensor:
        """[B] int64: the ids that each row holds."""
        return torch.tensor(self._held, dtype=torch.int64, device=self._ids.device)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """Starts every row with its prompt, in parallel, forgetting what the rows held.

        prompts: one int64 tensor [ids] for each row; lengths may differ and may be 0.

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
        for row, prompt in zip(self._ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        self._held = [len(prompt) for prompt in prompts]

        self._newest = []
        opens = torch.zeros_like(self.positions)  # [B]: the id at which a stage's sequence begins
        for index, cache in enumerate(self._stages):
            n = cache.places if index else longest // self.model.config.patch + 1
            b = cache.stage.bytes
            newest = (self.positions - opens) // b  # [B]
            output = self._fill(index, opens, n)
            self._newest.append(output[self._rows, newest])
            opens = opens + newest * b
        return self._logits()

    def _fill(self, index: int, opens: Tensor, n: int) -> Tensor:
        """Runs a stage over the `n` places that begin at the ids `opens` [B]; returns [B, n, D]."""
        cache = self._stages[index]
        b = cache.stage.bytes
        ids = self._ids.gather(1, opens[:, None] + torch.arange(n * b, device=opens.device))
        previous = rearrange(ids, "B (n b) -> B n b", b=b).roll(1, 1)
        place = repeat(torch.arange(n, device=opens.device), "n -> (B n)", B=self.batch)
        above = None
        if index:
            above = rearrange(self._newest[index - 1], "B (p d) -> (B p) d", p=n)
        attends = [layer.fill(n) for layer in cache.layers]
        output = cache.stage(rearrange(previous, "B n b -> (B n) b"), place, above, attends)
        return rearrange(output, "(B n) D -> B n D", n=n)

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Appends `ids` [B] int64, one to each row; returns the next logits, [B, V] float32.

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
        self._ids[self._rows, self.positions] = ids
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
        row = torch.tensor(rows, device=self._ids.device)
        place = torch.tensor(places, device=self._ids.device)
        last = self.positions[row, None] - b + torch.arange(b, device=row.device)  # [R, b]
        above = None
        if index:
            slices = rearrange(self._newest[index - 1], "B (p d) -> B p d", p=cache.places)
            above = slices[row, place]
        previous = self._ids[row[:, None], last]
        attends = [layer.append(rows, places) for layer in cache.layers]
        self._newest[index][row] = cache.stage(previous, place, above, attends)

    def _logits(self) -> Tensor:
        return self.model.lm_head(self._newest[-1]).float()
