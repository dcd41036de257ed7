"""Generation: a header, a prompt, then payload bytes one by one, until a valid file is complete.

B payloads drawn at once    L ids of the model's context    P ids of a patch    V ids
n payload bytes    S states of a guide
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.modalities import MODALITIES, framing, generation_guides
from bytelm.modalities.base import Header, Sample
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.decoding.packed_linear import BIT_IDENTICAL_ROWS
from bytelm.model.decoding.sampling import Noise, Sampling, sample
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.generation.request import Request
from bytelm.pipelines.runtime.device import autocast
from bytelm.pipelines.runtime.progress import Progress, stderr_console

HEADER_SEED = 1 << 40
"""Added to a file's seed for the bytes of its header, so that the noise of the payload does not
depend on whether a header was drawn."""

ShowBytes = Callable[[bytes], object]
Advance = Callable[[int], object]
"""Called with the number of payload bytes that were just drawn. An error that it raises ends the
drawing."""
Watch = Callable[[Callable[[], list[bytes]]], object]
"""Called with a function that returns the payloads that are drawn together, as far as they are."""


@dataclass(frozen=True)
class _Piece:
    """A row to fill: the ids before the payload, and the payload bytes [start, stop) to draw."""

    opening: npt.NDArray[np.uint16]
    start: int
    stop: int


def generate_files(
    model: Megabyte,
    requests: Sequence[Request],
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    out: Path,
    suffix: str | None = None,
    show: ShowBytes | None = None,
) -> list[Path]:
    """Write one file for each request and its seed into a folder, numbered from 0.

    Args:
        suffix: suffix of the files, one that the modality can write; None takes its first one.
        show: see `generate_payloads`.
    Raises:
        ValueError: for samples that files of that suffix cannot hold.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths: dict[int, Path] = {}
    total = sum(request.size - len(request.prompt) for request in requests)
    with Progress(None if show else stderr_console(), total) as progress:
        samples = generate_samples(
            model, requests, seeds, sampling, precision, show, advance=progress.add
        )
        for number, generated in samples:
            modality = MODALITIES[generated.modality]
            stem = out / f"{modality.name}-{number:03d}"
            paths[number] = modality.write_file(generated, stem, suffix)
    return [path for _, path in sorted(paths.items())]


def generate_samples(
    model: Megabyte,
    requests: Sequence[Request],
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    show: ShowBytes | None = None,
    advance: Advance = lambda drawn: None,
) -> Iterator[tuple[int, Sample]]:
    """Generate one sample for each request and its seed; equal requests are drawn together.

    Yields the number of the request and its sample, in the order in which they are drawn.
    """
    for request in dict.fromkeys(requests):
        numbers = [i for i, other in enumerate(requests) if other == request]
        request_seeds = [seeds[i] for i in numbers]
        payloads = generate_payloads(
            model, request, request_seeds, sampling, precision, show, advance
        )
        modality = MODALITIES[request.modality]
        for number, payload in zip(numbers, payloads, strict=True):
            values = np.frombuffer(payload, np.uint8)
            yield (
                number,
                modality.from_view(request.header, values, request.view, model.config.patch),
            )


@torch.no_grad()
def generate_payloads(
    model: Megabyte,
    request: Request,
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    show: ShowBytes | None = None,
    advance: Advance = lambda drawn: None,
    watch: Watch = lambda payloads: None,
) -> list[bytes]:
    """Draw a payload for each seed.

    A payload depends on its own seed and not on the other seeds, in fp32 on a CPU. In bf16 and on
    a GPU, the number of payloads drawn at once may change the last bits of the logits, and so a
    byte. A payload longer than the model's context is drawn in pieces, as in training: each opens
    with the preamble at its own offset.

    Args:
        show: called with the prompt and then with each further byte of the first payload.
        advance: called after each step that draws a byte of every payload.
        watch: called after each step, too.
    Returns:
        the payloads, prompts included.
    """
    payloads: list[bytes] = []
    rows = _rows_at_once(model.lm_head.weight.device, precision)
    for first in range(0, len(seeds), rows):
        batch_seeds = seeds[first : first + rows]
        batch_show = None if first else show
        payloads += _draw_payloads(
            model, request, batch_seeds, sampling, precision, batch_show, advance, watch
        )
    return payloads


@torch.no_grad()
def draw_headers(
    model: Megabyte,
    modality: str,
    view: str,
    choices: Sequence[Header],
    seeds: Sequence[int],
    sampling: Sampling,
) -> list[Header]:
    """Draw one of `choices` for each seed, byte by byte, as the model would begin a document."""
    headers: list[Header] = []
    rows = _rows_at_once(model.lm_head.weight.device, "fp32")
    for first in range(0, len(seeds), rows):
        batch_seeds = seeds[first : first + rows]
        headers += _draw_headers(model, modality, view, choices, batch_seeds, sampling)
    return headers


def _rows_at_once(device: torch.device, precision: str) -> int:
    """Most rows that are drawn at once: on a CPU in fp32, as many as leave each row's logits
    bit-identical to those of the row alone."""
    return BIT_IDENTICAL_ROWS if device.type == "cpu" and precision == "fp32" else sys.maxsize


class _PayloadBatch:
    """B payloads of one request that grow together, each until its own end."""

    def __init__(
        self, request: Request, seeds: Sequence[int], sampling: Sampling, device: torch.device
    ) -> None:
        count, prompt = len(seeds), request.prompt
        self._size = request.size
        self._sampling = sampling
        self._allowed = torch.from_numpy(request.guide.allowed).to(device)  # [S, ROOM + 1, V]
        self._next_state = torch.from_numpy(request.guide.next).to(device)  # [S, 256]
        self._state = torch.full((count,), request.guide.follow(prompt), device=device)
        self._noise = Noise(seeds, device)
        self._lengths = torch.full((count,), len(prompt), device=device)
        self.position = len(prompt)
        """Payload bytes of the longest payload."""
        self.payload = torch.zeros(count, request.size, dtype=torch.uint8, device=device)
        """[B, n], valid up to `position`."""
        self.payload[:, : self.position] = torch.tensor(list(prompt), dtype=torch.uint8)

    def grows(self, stop: int) -> bool:
        """Whether a payload has a byte to draw before `stop`."""
        return self.position < stop and bool((self._lengths == self.position).any())

    def append(self, logits: Tensor) -> bytes:
        """Draw the next byte or the end of every payload from logits [B, V].

        Returns the first payload's byte, or nothing where it has ended.
        """
        is_growing = self._lengths == self.position
        # An ended payload has room 0, where the guide allows EOM alone.
        room = min(self._size - self.position, generation_guides.ROOM) * is_growing
        allowed = self._allowed[self._state, room]
        ids = sample(logits, self._sampling, self._noise.draw(), allowed)
        drawn = ids.clamp(max=255)
        self.payload[:, self.position] = drawn
        self._lengths += ids < framing.PAD
        self._state = self._next_state[self._state, drawn]
        self.position += 1
        return bytes([int(ids[0])]) if self._lengths[0] == self.position else b""

    def payloads(self) -> list[bytes]:
        """The payloads as far as they are drawn, each of its own length."""
        values = self.payload.cpu().numpy()
        lengths = self._lengths.tolist()
        return [row[:length].tobytes() for row, length in zip(values, lengths, strict=True)]


def _draw_payloads(
    model: Megabyte,
    request: Request,
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    show: ShowBytes | None,
    advance: Advance,
    watch: Watch,
) -> list[bytes]:
    device = model.lm_head.weight.device
    batch = _PayloadBatch(request, seeds, sampling, device)
    codes = torch.full((len(seeds),), MODALITIES[request.modality].code, device=device)
    if show:
        show(request.prompt)
    pieces = _pieces(request, model.config.context, model.config.patch)
    # All pieces but the first and the last have the same length.
    opening_pieces = list(islice(pieces, 2))
    longest = max(len(piece.opening) + piece.stop - piece.start for piece in opening_pieces)
    with autocast(device, precision):
        decoder = Decoder(model, len(seeds), longest)
        for piece in chain(opening_pieces, pieces):
            if not batch.grows(request.size):
                break
            for logits in _logits(decoder, piece, batch, codes):
                byte = batch.append(logits)
                advance(len(seeds))
                watch(batch.payloads)
                if show and byte:
                    show(byte)
    return batch.payloads()


def _logits(
    decoder: Decoder, piece: _Piece, batch: _PayloadBatch, codes: Tensor
) -> Iterator[Tensor]:
    """Logits [B, V] of each next id of a piece, while the caller appends to the batch."""
    if not batch.grows(piece.stop):
        return
    opening = torch.from_numpy(piece.opening.astype(np.int64)).to(codes.device)
    begun = batch.payload[:, piece.start : batch.position].long()
    yield decoder.prefill([torch.cat([opening, row]) for row in begun], codes)
    while batch.grows(piece.stop):
        yield decoder.step(batch.payload[:, batch.position - 1].long())


def _pieces(request: Request, length: int, patch: int) -> Iterator[_Piece]:
    """The pieces of at most `length` ids that have payload bytes to draw."""
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
        yield _Piece(np.concatenate([framed.ids, preamble]), start, stop)


def _draw_headers(
    model: Megabyte,
    modality_name: str,
    view: str,
    choices: Sequence[Header],
    seeds: Sequence[int],
    sampling: Sampling,
) -> list[Header]:
    modality, device = MODALITIES[modality_name], model.lm_head.weight.device
    packed = np.array([list(modality.pack_header(header, view, 0)) for header in choices])
    decoder = Decoder(model, len(seeds), 1 + modality.header_size)
    codes = torch.full((len(seeds),), modality.code, device=device)
    ids = torch.full((len(seeds),), modality.som, device=device)  # [B]
    empty_prompt = torch.zeros(0, dtype=torch.int64, device=device)
    decoder.prefill([empty_prompt] * len(seeds), torch.zeros_like(codes))
    noise = Noise([seed + HEADER_SEED for seed in seeds], device)
    # [B, choices], whether a choice begins with the bytes that were drawn.
    is_possible = np.ones((len(seeds), len(choices)), np.bool_)
    for position in range(modality.header_size):
        logits = decoder.step(ids, codes)
        allowed = np.zeros((len(seeds), framing.VOCAB_SIZE), np.bool_)  # [B, V]
        for row, possible in zip(allowed, is_possible, strict=True):
            row[packed[possible, position]] = True
        ids = sample(logits, sampling, noise.draw(), torch.from_numpy(allowed).to(device))
        is_possible &= packed[:, position] == ids.cpu().numpy()[:, None]
    return [choices[int(possible.argmax())] for possible in is_possible]
