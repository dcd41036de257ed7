"""Hints: what a codec looks at before it codes a byte, as ids beside the bytes before it.

xz copies what followed the same bytes before, PNG's filters guess a byte from the pixel to its left
and from the line above, FLAC's predictors a sample from the last ones. For a model of patches what
it would copy lies at another place of its patch, the line above is far away, and a weighted sum of
samples is sixteen bits of arithmetic: a short training finds none of them. Where they lie is in
the stream, since a segment opens with its header. So an id gets J more, which are functions of the
ids before it:

    of images   the bytes in its place of the pixels to the left, above, and beside that one; their
                plane (left + above - corner) and its median with left and above (JPEG-LS); and the
                byte before, with the step from there to here that the pixel above or to the left
                had; and which byte of a pixel it is
    of sounds   three guesses of the sample: by linear prediction, on a line with the last two, and
                like the last one (for its high byte, the two bytes of each; for its low byte,
                what is left of each above 256 times the high one, and by how much its high byte
                is more, plus 128); how far predictions were off lately, and which byte of a
                frame it is
    of all but  the bytes that followed the last occurrences of the last four, six and eight bytes
    sounds      in this payload, and how often in a row those were right (`matching.py`)

Views with other bytes than pixels and big-endian samples are no images and no sounds here.
`cursor.py` has the same for a row that is read id by id.

Shapes:
    B rows of T ids    K patches of P ids    m payload bytes    C channels    J = HINTS
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm.model.matching import NONE, ORDERS, matches
from bytelm.model.prediction import predicted

TEXT, IMAGE, AUDIO = 259, 260, 261
"""The ids that open segments of the stream."""
RASTER, PLANAR, S16BE = 0, 1, 1
"""Codes in their headers of the views that are read as pixels and as samples."""
PAD = 256
HEADS = {TEXT: 6, IMAGE: 11, AUDIO: 11}
"""Ids of an opening and its header, which ends with a view and an offset of four bytes; before them
stand four bytes by modality and the channels, but for text."""
GUESSES = 9
"""Hints of pixels and samples; the last of them is there for these alone."""
HINTS = GUESSES + 2 * len(ORDERS)
SPANS = (16, 128)
"""Samples over which it is measured how far predictions were off."""
STEPS = 16
"""Of a measured distance for each doubling."""


@dataclass(frozen=True)
class Strides:
    """How the bytes of a payload lie, from its header."""

    kind: Literal["bytes", "image", "sound"]
    near: int = 1
    """Bytes of a pixel, or of a frame."""
    line: int = 0
    """Bytes of a line."""
    phase: int = 0
    """Which byte of a pixel or a frame the payload that is there begins with."""

    @classmethod
    def of(cls, head: list[int]) -> "Strides":
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

    def hints(self, payload: Tensor) -> Tensor:
        """Of every place of a payload, and of the one behind it.

        payload [m]: ids; those that are no bytes count as 0, as does what would lie before.
        Returns [m + 1, J] int16.
        """
        bytes_ = payload.masked_fill(payload > 255, 0)
        places = len(payload) + 1
        made = bytes_.new_full((places, HINTS), NONE, dtype=torch.int16)
        if self.kind == "image":
            made[:, : GUESSES - 1] = self._of_image(bytes_.short())
        elif self.kind == "sound":
            made[:, : GUESSES - 1] = self._of_sound(bytes_)
        if self.kind != "bytes":
            place = torch.arange(places, device=payload.device)
            made[:, GUESSES - 1] = (place + self.phase) % self.near
        if self.kind != "sound":
            found, right = matches(bytes_)
            made[:, GUESSES:] = torch.cat([found, magnitude(right, 1)], dim=1)
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


def hints(ids: Tensor, document: Tensor, patch: int) -> Tensor:
    """Of all ids of rows, [B, T, J] int16, NONE but in the payloads that `_payloads` finds.

    ids [B, T], document [B, N]: as in `Megabyte.forward`.
    """
    made = ids.new_full((*ids.shape, HINTS), NONE, dtype=torch.int16)
    host, runs = ids.cpu(), document.cpu()
    runs = runs.repeat_interleave(ids.shape[1] // patch // runs.shape[1], dim=1)
    for row, (of_row, run) in enumerate(zip(host, runs, strict=True)):
        for strides, padding, begin, end in _payloads(of_row, run, patch):
            made[row, padding:begin] = strides.hints(ids[row, :0])
            made[row, begin:end] = strides.hints(ids[row, begin : end - 1])
    return made


def _payloads(ids: Tensor, run: Tensor, patch: int) -> Iterator[tuple[Strides, int, int, int]]:
    """Of all payloads with hints in a row of ids [T], whose patches are of the documents `run` [K].

    Yields the strides, and the places where padding begins (for a larger patch than this model's),
    where the payload does, and where what has its hints ends: with the document, or with a patch
    that opens with an id that is no byte. That patch belongs to it, since its first id is not known
    before it.
    """
    starts = ids[::patch]
    last = torch.ones_like(run, dtype=torch.bool)
    last[:-1] = run[1:] != run[:-1]
    marked = last | (starts > 255)
    marks = marked.nonzero().squeeze(1).tolist()
    first, is_last = starts[marked].tolist(), last[marked].tolist()
    for i, opened in enumerate(marks):
        if first[i] not in HEADS or is_last[i]:
            continue
        head = ids[opened * patch :][: HEADS[first[i]]].tolist()
        padding = begin = opened + preamble(first[i], patch)
        i += 1
        while marks[i] == begin and first[i] == PAD and not is_last[i]:
            begin, i = begin + 1, i + 1
        if marks[i] >= begin:
            yield Strides.of(head), padding * patch, begin * patch, (marks[i] + 1) * patch
