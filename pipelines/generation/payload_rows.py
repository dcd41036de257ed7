"""Payloads that are drawn together, a row each, in pieces of at most the model's context.

Shapes:
    B   rows                     L   ids of the model's context
    n   payload bytes of the longest row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from bytelm.modalities import MODALITIES, framing
from bytelm.model.decoding.row_drawer import DrawnIds
from bytelm.pipelines.generation.request import Request


@dataclass(frozen=True)
class Piece:
    """Rows to fill: the ids before each payload, and the payload bytes [start, stop) to draw."""

    openings: npt.NDArray[np.uint16]
    """[B, ids]."""
    start: int
    stop: int


def can_share_rows(request: Request, other: Request) -> bool:
    """Whether both are drawn by the same steps: all that differs is the header, the length and the
    bytes of the prompt."""
    if request is other:
        return True
    kind = (request.modality, request.view, len(request.prompt), request.condition)
    if kind != (other.modality, other.view, len(other.prompt), other.condition):
        return False
    guide = request.guide
    return np.array_equal(guide.allowed, other.guide.allowed) and (
        request.prompt == other.prompt or guide.follow(request.prompt) == guide.follow(other.prompt)
    )


class PayloadRows:
    """Payloads that grow together, each until its own end.

    Args:
        requests: of each row; every two of them `can_share_rows`.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._begun = len(requests[0].prompt)
        self.position = self._begun
        """Payload bytes of a row that still grows."""
        self._lengths = np.full(len(requests), self._begun)  # [B]
        self._longest = max(request.size for request in requests)
        self._payload = np.zeros((len(requests), self._longest), np.uint8)  # valid up to `position`
        for row, request in zip(self._payload, requests, strict=True):
            row[: self._begun] = np.frombuffer(request.prompt, np.uint8)

    @property
    def room(self) -> list[int]:
        """[B], bytes to draw in each row at most."""
        return [request.room for request in self._requests]

    def grows(self, stop: int) -> bool:
        """Whether a payload has a byte to draw before `stop`."""
        return self.position < stop and bool((self._lengths == self.position).any())

    def append(self, drawn: DrawnIds) -> tuple[int, bytes]:
        """Take what was drawn; returns the number of bytes, and those of the first row."""
        count, before = drawn.ids.shape[1], self._lengths
        self._payload[:, self.position : self.position + count] = drawn.ids
        self.position += count
        self._lengths = self._begun + drawn.drawn
        first = self._payload[0, before[0] : self._lengths[0]].tobytes()
        return int((self._lengths - before).sum()), first

    def payloads(self) -> list[bytes]:
        """The payloads as far as they are drawn, each of its own length."""
        rows = zip(self._payload, self._lengths, strict=True)
        return [row[:length].tobytes() for row, length in rows]

    def prompts(self, piece: Piece) -> npt.NDArray[np.int64]:
        """The ids that the rows hold when a piece begins, [B, ids]."""
        begun = self._payload[:, piece.start : self.position]
        return np.concatenate([piece.openings, begun], axis=1).astype(np.int64)

    def pieces(self, length: int, patch: int) -> Iterator[Piece]:
        """The pieces of at most `length` ids that have payload bytes to draw."""
        kinds = {request: i for i, request in enumerate(dict.fromkeys(self._requests))}
        of_rows = [kinds[request] for request in self._requests]
        for pieces in zip_longest(*(_pieces(kind, length, patch) for kind in kinds)):
            growing = [piece for piece in pieces if piece]
            # Rows that are complete already have the opening of another row, in vain.
            openings = [(piece or growing[0]).openings for piece in pieces]
            assert len({piece.start for piece in growing}) == 1
            stop = max(piece.stop for piece in growing)
            yield Piece(np.concatenate(openings)[of_rows], growing[0].start, stop)


def _pieces(request: Request, length: int, patch: int) -> Iterator[Piece]:
    """The pieces of one request, with a single row."""
    modality, condition = MODALITIES[request.modality], request.condition
    generated = framing.Segment(modality, request.header, request.view, request.size)
    segments = [condition.segment, generated] if condition else [generated]
    preceding = np.frombuffer(condition.payload if condition else b"", np.uint8)
    parts = [(segment.modality, segment.size) for segment in segments]
    for *others, last in framing.split_document(parts, patch, lambda: length):
        start, stop = last.start, min(last.start + last.length, request.size)
        if last.segment < len(segments) - 1 or stop <= max(start, len(request.prompt)):
            continue
        framed = framing.frame(others, segments, lambda _, a, b: preceding[a:b], patch)
        preamble = framing.preamble(modality, request.header, request.view, start, patch)
        yield Piece(np.concatenate([framed.ids, preamble])[None], start, stop)
