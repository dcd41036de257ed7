"""Hints: what a codec looks at before it codes a byte, as ids beside the bytes before it.

PNG's filters guess a byte from the pixel to its left and from the line above, FLAC's predictors a
sample from the last ones. For a model of patches the line above is far away, and a difference of
samples is sixteen bits of arithmetic: a short training finds neither. Where they lie is in the
stream, since a segment opens with its header. So an id gets J more, all of them functions of the
ids before it:

    of images   the line above, from BEHIND bytes before the byte's own place on, and the guesses of
                two filters: left + above - corner, and the median of these three
    of sounds   the next sample, were it like the last one, on a line with the last two, and on a
                parabola with three (FLAC's fixed predictors, RFC 9639). At its high byte the
                guess's two bytes; at its low byte the guess less 256 times the high one, and how
                much more the guess's high byte is, 128 more than that

Views with other bytes than pixels and big-endian samples have none.

Shapes:
    B rows of T ids    K patches of P ids    m payload bytes    n places    J = HINTS
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE, AUDIO = 260, 261
"""The ids that open segments of images and sounds in the stream."""
RASTER, PLANAR, S16BE = 0, 1, 1
"""Codes in their headers of the views that have hints."""
PAD = 256
HEAD = 11
"""Ids of an opening and its header: four bytes by modality, channels, view, offset in four."""
BEHIND, AHEAD = 6, 6
"""Bytes of the line above: before the byte's own place, and from it on."""
GUESSES = 6
HINTS = BEHIND + AHEAD + GUESSES
NONE = -1


@dataclass(frozen=True)
class Strides:
    """How the bytes of a payload lie, from its header."""

    is_image: bool
    near: int
    """Bytes back to the same byte of the pixel before, or of the channel's sample before."""
    line: int
    """Bytes back to the line above."""
    is_odd: bool
    """Whether the payload that is there begins with the second byte of a sample."""

    @classmethod
    def of(cls, head: list[int]) -> "Strides | None":
        """From the first ids of a segment, [HEAD]; None where there are no hints."""
        opener, high, low, _, _, channels, view, *_, offset = head
        if max(head[1:]) > 255 or channels == 0:
            return None
        if opener == IMAGE and view in (RASTER, PLANAR):
            near = channels if view == RASTER else 1
            line = (256 * high + low) * near
            return cls(True, near, line, False) if line >= AHEAD else None
        if opener == AUDIO and view == S16BE:
            return cls(False, 2 * channels, 0, offset % 2 == 1)
        return None

    def hints(self, payload: Tensor, start: int) -> Tensor:
        """Of the places from `start` to the one behind the payload's last byte, [..., n, J].

        payload [..., m]: ids; those that are no bytes count as none.
        """
        bytes_ = payload.to(torch.int16 if self.is_image else torch.int32)
        bytes_ = bytes_.masked_fill(bytes_ > 255, NONE)
        count = payload.shape[-1] + 1 - start
        if self.is_image:
            return self._of_image(bytes_, start, count)
        return self._of_sound(bytes_, start, count)

    def next_hints(self, payload: Tensor) -> Tensor:
        """Of the place behind the payload [..., m], [..., J]."""
        reach = self.line + max(BEHIND, self.near) if self.is_image else 3 * self.near + 1
        rest = max(payload.shape[-1] - reach, 0) // 2 * 2  # whole samples
        return self.hints(payload[..., rest:], payload.shape[-1] - rest)[..., 0, :]

    def _of_image(self, payload: Tensor, start: int, count: int) -> Tensor:
        def before(distance: int) -> Tensor:
            return _before(payload, start - distance, count).clamp(min=0)  # 0 outside, as in PNG

        line = _before(payload, start - self.line - BEHIND, count + BEHIND + AHEAD - 1)
        line = line.unfold(-1, BEHIND + AHEAD, 1)
        left, above, corner = map(before, (self.near, self.line, self.line + self.near))
        plane = left + above - corner
        least, most = torch.minimum(left, above), torch.maximum(left, above)
        median = torch.minimum(torch.maximum(plane, least), most)
        guesses = torch.stack([plane.clamp(0, 255), median], dim=-1)
        return torch.cat([line, F.pad(guesses, (0, GUESSES - 2), value=NONE)], dim=-1)

    def _of_sound(self, payload: Tensor, start: int, count: int) -> Tensor:
        place = torch.arange(start, start + count, device=payload.device)
        is_low = (place + self.is_odd) % 2 == 1
        # What begins at each place, and one place before the first.
        begin = start - 1 - 3 * self.near
        high = _before(payload, begin, count + 3 * self.near).clamp(min=0)
        value = high[..., :-1] * 256 + high[..., 1:] - (high[..., :-1] >> 7 << 16)
        last = []
        for k in (1, 2, 3):
            at = (3 - k) * self.near
            early, late = value[..., at : at + count], value[..., at + 1 : at + 1 + count]
            last.append(torch.where(is_low, early, late))
        first, second, third = last
        guesses = (first, 2 * first - second, 3 * (first - second) + third)
        guess = torch.stack(guesses, dim=-1).clamp(-32768, 32767)  # [..., n, 3]
        own = _before(payload, start - 1, count).clamp(min=0)
        own = (own - (own >> 7 << 8))[..., None]
        parts = torch.where(
            is_low[:, None, None],
            torch.stack([(guess - 256 * own), (guess >> 8) - own + 128], dim=-1).clamp(0, 255),
            torch.stack([guess >> 8 & 255, guess & 255], dim=-1),
        )
        return F.pad(parts.flatten(-2), (BEHIND + AHEAD, 0), value=NONE)


def _before(payload: Tensor, begin: int, count: int) -> Tensor:
    """`count` ids of the payload [..., m] from the place `begin` on, NONE before its start."""
    missing = min(max(-begin, 0), count)
    there = payload[..., begin + missing : begin + count]
    return F.pad(there, (missing, 0), value=NONE) if missing else there


def preamble(patch: int) -> int:
    """Patches of a segment's preamble."""
    return -(-HEAD // patch)


def hints(ids: Tensor, document: Tensor, patch: int) -> Tensor:
    """Of all ids of rows, [B, T, J] int16, NONE but in the payloads that `_payloads` finds.

    ids [B, T], document [B, N]: as in `Megabyte.forward`.
    """
    made = ids.new_full((*ids.shape, HINTS), NONE, dtype=torch.int16)
    host, runs = ids.cpu(), document.cpu()
    runs = runs.repeat_interleave(ids.shape[1] // patch // runs.shape[1], dim=1)
    for row, (of_row, run) in enumerate(zip(host, runs, strict=True)):
        for strides, padding, begin, end in _payloads(of_row, run, patch):
            made[row, padding:begin] = strides.hints(ids[row, :0], 0).to(torch.int16)
            made[row, begin:end] = strides.hints(ids[row, begin : end - 1], 0).to(torch.int16)
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
        if first[i] not in (IMAGE, AUDIO) or is_last[i]:
            continue
        padding = begin = opened + preamble(patch)
        i += 1
        while marks[i] == begin and first[i] == PAD and not is_last[i]:
            begin, i = begin + 1, i + 1
        if marks[i] >= begin:
            strides = Strides.of(ids[opened * patch : opened * patch + HEAD].tolist())
            if strides:
                yield strides, padding * patch, begin * patch, (marks[i] + 1) * patch


@dataclass
class Cursor:
    """Where a row stands that is read id by id: the payload that its next id goes on with."""

    patch: int
    strides: Strides | None = None
    begin: int = 0
    """The place of the payload's first byte."""
    _opened: int = NONE
    """The place of the last segment's opening."""

    def cross(self, ids: Tensor, held: int) -> None:
        """Takes up the patch with which the first `held` of a row's ids [held or more] end."""
        start = held - self.patch
        first = int(ids[start])
        if first == PAD and self.strides and self.begin == start:
            self.begin = held
        elif first > 255:
            self.strides, self._opened = None, start
        if self._opened >= 0 and held == self._opened + preamble(self.patch) * self.patch:
            self.strides = Strides.of(ids[self._opened : self._opened + HEAD].tolist())
            self.begin = held
