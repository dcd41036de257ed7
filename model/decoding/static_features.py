"""Codec features of rows that are drawn on a GPU, by tensors of fixed shapes.

They equal those of `codec_features.kernels`, where they are described: here for the next id of
every row at once, without a wait for the host. Where a table would hold the latest occurrence of
the last bytes, all bytes before are searched, which a GPU does faster than it follows a table.

Every row is inside of a payload and stays there. Prompts are read on the host, by the kernels.

Shapes:
    B   rows                     t   ids that each row holds
    n   payload bytes that each row holds
    L   payload bytes that a row can hold
    K   lengths of matches       J   codec features of an id
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bytelm.model.codec_features.layout import MATCH_LENGTHS, MATCHES, NONE, PREDICTIONS
from bytelm.model.codec_features.state import NO_PAYLOAD, PIXELS, SAMPLES, FeatureState
from bytelm.model.decoding.static_audio import StaticSamples
from bytelm.model.decoding.static_formulas import Magnitude, image_predictions

KEY_BYTES = 8
"""Last bytes that a key of 64 bits holds."""


class StaticFeatures:
    """Codec features of the next id of every row.

    Args:
        batch: B.
        length: the most ids of a row.
    """

    def __init__(self, batch: int, length: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        self._bytes = zeros(batch, length + 1)
        self._keys = zeros(batch, length + 2)
        """At n the last KEY_BYTES bytes of the first n."""
        self._key, self._count = zeros(batch), zeros(1)
        self._held = 0
        """n, on the host; `_count` is n on the device."""
        self._runs = zeros(batch, len(MATCH_LENGTHS))
        self._candidates = zeros(batch, len(MATCH_LENGTHS))
        self._unit, self._line, self._phase = zeros(batch), zeros(batch), zeros(batch)
        self._is_image, self._is_audio = (zeros(batch, 1).bool() for _ in range(2))
        masks = [-1 if k == KEY_BYTES else (1 << 8 * k) - 1 for k in MATCH_LENGTHS]
        self._masks = torch.tensor(masks, device=device)[:, None]  # [K, 1]
        self._lengths = torch.tensor(MATCH_LENGTHS, device=device)[:, None]
        self._run_magnitude = Magnitude(1, device)
        self._samples = StaticSamples(self._bytes)
        self._kinds: frozenset[int] = frozenset()
        self._push: Callable[[Tensor, bool], None] = self._push_byte
        self._next: Callable[[], Tensor] = self._next_features

    def begin(self, state: FeatureState) -> None:
        """Take the rows as they stand behind their prompts.

        Raises:
            ValueError: a row is not inside of a payload, or the payloads start at different ids.
        """
        rows = state.rows
        self._kinds = frozenset(rows["kind"].tolist())
        if NO_PAYLOAD in self._kinds or len(set(rows["size"].tolist())) > 1:
            raise ValueError(
                "prompts do not all end inside of a payload that starts at the same id, as rows "
                "that are drawn together on a GPU must: give each its whole preamble"
            )
        size, held = int(rows["size"][0]), int(rows["count"][0])
        self._held = size
        self._count.fill_(size)
        payload = state.bytes[:, held - size : held]
        self._bytes[:, :size] = torch.from_numpy(payload)
        self._keys[:, : size + 1] = torch.from_numpy(
            state.keys[:, held - size : held + 1].view(np.int64)
        )
        for kept, values in (
            (self._key, rows["key"].astype(np.int64)),
            (self._runs, rows["runs"]),
            (self._candidates, state.features[:, MATCHES : MATCHES + len(MATCH_LENGTHS)]),
            (self._unit, rows["unit"]),
            (self._line, rows["line"]),
            (self._phase, rows["place"] - size),
            (self._is_image[:, 0], rows["kind"] == PIXELS),
            (self._is_audio[:, 0], rows["kind"] == SAMPLES),
        ):
            kept.copy_(torch.from_numpy(np.ascontiguousarray(values)))
        self._unit.clamp_(min=1)
        if SAMPLES in self._kinds:
            self._samples.begin(state)

    def compile(self, backend: str) -> None:
        """Compile the steps between two blocks of linear prediction."""
        self._push = torch.compile(self._push_byte, dynamic=True, backend=backend)
        self._next = torch.compile(self._next_features, dynamic=True, backend=backend)

    def is_block_due(self) -> bool:
        """Whether the next push begins a block of linear prediction in any row."""
        return SAMPLES in self._kinds and self._samples.is_block_due(self._held + 1)

    def count_on_host(self) -> None:
        """Note on the host that a byte was pushed on the device."""
        self._held += 1

    def push(self, ids: Tensor, updates_block: bool) -> None:
        """Take the next byte [B] of every row; `updates_block` is what `is_block_due` said."""
        if updates_block:
            self._push_byte(ids, updates_block)
        else:
            self._push(ids, updates_block)

    def next_features(self) -> Tensor:
        """Features of the next id of every row, [B, J] int64."""
        return self._next()

    def _push_byte(self, ids: Tensor, updates_block: bool) -> None:
        if SAMPLES in self._kinds:
            self._samples.note(ids, self._count)
        self._bytes.index_copy_(1, self._count, ids[:, None])
        self._runs.add_(1).mul_(self._candidates == ids[:, None])
        self._key.copy_(self._key << 8 | ids)
        self._count += 1
        self._keys.index_copy_(1, self._count, self._key[:, None])
        if self._kinds != {SAMPLES}:
            self._candidates.copy_(self._match())
        if SAMPLES in self._kinds:
            self._samples.predict(self._count, updates_block)

    def _next_features(self) -> Tensor:
        none = torch.full_like(self._bytes[:, :1], NONE)
        predictions = none.expand(-1, PREDICTIONS)
        if PIXELS in self._kinds:
            image = image_predictions(self._back, self._unit, self._line)
            predictions = torch.where(self._is_image, image, predictions)
        if SAMPLES in self._kinds:
            audio = self._samples.features(self._count)
            predictions = torch.where(self._is_audio, audio, predictions)
        phase = (self._count + self._phase) % self._unit
        has_phase = self._is_image | self._is_audio
        matches = torch.cat([self._candidates, self._run_magnitude(self._runs)], dim=1)
        parts = [
            predictions,
            torch.where(has_phase, phase[:, None], none),
            torch.where(self._is_audio, none, matches),
        ]
        return torch.cat(parts, dim=1)

    def _match(self) -> Tensor:
        """[B, K], the byte after the latest earlier occurrence of the last bytes, or NONE."""
        slot = torch.arange(self._keys.shape[1], device=self._keys.device)
        is_earlier = (slot >= self._lengths) & (slot < self._count)  # [K, L + 2]
        differs = (self._keys ^ self._key[:, None])[:, None] & self._masks  # [B, K, L + 2]
        latest = torch.where((differs == 0) & is_earlier, slot, -1).amax(dim=2)
        candidates = self._bytes.gather(1, latest.clamp(min=0))
        return candidates.masked_fill(latest < 0, NONE)

    def _back(self, distance: Tensor) -> Tensor:
        """The byte [B] that lies `distance` [B] before the next one; 0 before the payload."""
        index = self._count - distance
        values = self._bytes.gather(1, index.clamp(min=0)[:, None])[:, 0]
        return values.masked_fill(index < 0, 0)
