"""Where the payloads of a row lie, and what both ways of making codec features share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm.model.codec_features.linear_prediction import predicted
from bytelm.model.codec_features.match import NONE, ORDERS, matches

TEXT, IMAGE, AUDIO = 259, 260, 261
"""The ids that open segments of the stream."""
RASTER, PLANAR, S16BE = 0, 1, 1
"""Codes in their headers of the views that are read as pixels and as samples."""
PAD = 256
HEADS = {TEXT: 6, IMAGE: 11, AUDIO: 11}
"""Ids of an opening and its header, which ends with a view and an offset of four bytes; before them
stand four bytes by modality and the channels, but for text."""
PREDICTIONS = 9
"""Hints of pixels and samples; the last of them is there for these alone."""
FEATURES = PREDICTIONS + 2 * len(ORDERS)
SPANS = (16, 128)
"""Samples over which it is measured how far predictions were off."""
STEPS = 16
"""Of a measured distance for each doubling."""


@dataclass(frozen=True)
class PayloadLayout:
    """How the bytes of a payload lie, from its header."""

    kind: Literal["bytes", "image", "sound"]
    near: int = 1
    """Bytes of a pixel, or of a frame."""
    line: int = 0
    """Bytes of a line."""
    phase: int = 0
    """Which byte of a pixel or a frame the payload that is there begins with."""

    @classmethod
    def of(cls, head: list[int]) -> PayloadLayout:
        """From the first ids of a segment, as many as HEADS says."""
        if head[0] == TEXT or max(head[1:]) > 255:
            return cls("bytes")
        opener, high, low, _, _, channels, view, *offset = head
        width, skipped = 256 * high + low, int.from_bytes(offset, "big")
        if opener == IMAGE and view in (RASTER, PLANAR) and width > 1 and channels:
            near = channels if view == RASTER else 1
            return cls("image", near, width * near, skipped % near)
        if opener == AUDIO and view == S16BE and channels:
            return cls("sound", 2 * channels, 0, skipped % (2 * channels))
        return cls("bytes")

    def codec_features(self, payload: Tensor) -> Tensor:
        """Of every place of a payload, and of the one behind it.

        payload [m]: ids; those that are no bytes count as 0, as does what would lie before.
        Returns [m + 1, J] int16.
        """
        bytes_ = payload.masked_fill(payload > 255, 0)
        places = len(payload) + 1
        made = bytes_.new_full((places, FEATURES), NONE, dtype=torch.int16)
        if self.kind == "image":
            made[:, : PREDICTIONS - 1] = self._of_image(bytes_.short())
        elif self.kind == "sound":
            made[:, : PREDICTIONS - 1] = self._of_sound(bytes_)
        if self.kind != "bytes":
            place = torch.arange(places, device=payload.device)
            made[:, PREDICTIONS - 1] = (place + self.phase) % self.near
        if self.kind != "sound":
            found, right = matches(bytes_)
            made[:, PREDICTIONS:] = torch.cat([found, magnitude(right, 1)], dim=1)
        return made

    def _of_image(self, payload: Tensor) -> Tensor:
        places = len(payload) + 1

        def back(distance: int) -> Tensor:
            return F.pad(payload, (distance, 0))[:places]

        near, line = self.near, self.line
        left, above, corner, right = map(back, (near, line, line + near, line - near))
        plane = left + above - corner
        median = plane.clamp(torch.minimum(left, above), torch.maximum(left, above))
        by_above = back(1) + above - back(line + 1)
        by_left = back(1) + left - back(near + 1)
        guesses = (median, plane, by_above, by_left, left, above, corner, right)
        return torch.stack(guesses, dim=1).clamp(0, 255)

    def _of_sound(self, payload: Tensor) -> Tensor:
        channels, lost = self.near // 2, self.phase % 2
        high, low = payload[lost : len(payload) - (len(payload) - lost) % 2].view(-1, 2).unbind(1)
        samples = 256 * signed(high) + low  # [s], and then the one to guess
        frames = len(samples) // channels + 1
        by_channel = F.pad(samples, (0, frames * channels - len(samples))).view(frames, channels).T
        made = torch.stack(
            [
                predicted(by_channel)[:, :frames],
                2 * F.pad(by_channel, (1, 0))[:, :-1] - F.pad(by_channel, (2, 0))[:, :-2],
                F.pad(by_channel, (1, 0))[:, :-1],
            ]
        ).clamp(-32768, 32767)
        off = F.pad((by_channel - made[0]).abs().cumsum(dim=1), (1, 0))  # [C, frames + 1]
        lately = [off - F.pad(off, (span, 0))[:, :-span] for span in SPANS]
        measured = torch.stack(
            [magnitude(f[:, :-1], s) for f, s in zip(lately, SPANS, strict=True)]
        )
        each = torch.cat([made, measured]).permute(2, 1, 0).flatten(0, 1)  # [frames C, 5]
        place = torch.arange(len(payload) + 1, device=payload.device)
        each = F.pad(each, (0, 0, lost, 0))[(place + lost) // 2]
        own = signed(F.pad(payload, (1, 0)))[:, None]
        is_low = ((place + lost) % 2 == 1)[:, None]
        guess = each[:, :3]
        numbers = torch.stack(
            [
                torch.where(is_low, guess - 256 * own, guess >> 8 & 255),
                torch.where(is_low, (guess >> 8) - own + 128, guess & 255),
            ],
            dim=2,
        )
        return torch.cat([numbers.flatten(1).clamp(0, 255), each[:, 3:]], dim=1)


def signed(byte: Tensor) -> Tensor:
    """A byte as a number from -128 to 127."""
    return byte - (byte >> 7 << 8)


def thresholds(span: int) -> list[int]:
    """Sums of so many distances, from which on `magnitude` is 1, 2, ... 255."""
    return [math.ceil(span * (2 ** (i / STEPS) - 1)) for i in range(1, 256)]


def magnitude(total: Tensor, span: int) -> Tensor:
    """STEPS * log2(1 + mean) of `span` distances of a `total` [...], rounded down, at most 255."""
    bounds = torch.tensor(thresholds(span), device=total.device)
    return torch.searchsorted(bounds, total.contiguous(), right=True)


def preamble(opener: int, patch: int) -> int:
    """Patches of the preamble of a segment that opens with an id; 0 for one that opens none."""
    return -(-HEADS.get(opener, 0) // patch)
