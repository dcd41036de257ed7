"""Generation: a header, a prompt, then payload bytes one by one, until a valid file is complete.

B files made at once    L ids of the model's context    P ids in a patch    V ids    n payload bytes
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress

from bytelm.modalities import MODALITIES, framing, generation_guides
from bytelm.modalities.base import Header
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.decoding.sampling import Noise, Sampling, sample
from bytelm.model.decoding.packed_linear import BIT_IDENTICAL_ROWS
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.generation.request import Request
from bytelm.pipelines.runtime.device import autocast

HEADER_SEED = 1 << 40
"""Added to a file's seed for the bytes of its header, so that its payload begins a stream."""


@dataclass(frozen=True)
class _Piece:
    """A row to fill: ids that are given, and the payload bytes that come after them."""

    given: npt.NDArray[np.uint16]
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
    show: Callable[[bytes], object] | None = None,
) -> list[Path]:
    """Write a file for each request and its seed into a folder, numbered from 0.

    Equal requests are drawn together. Raises ValueError for what the files cannot hold.

    Args:
        suffix: of the files, one that the modality can write; None for the usual one.
        show: see `generate_payloads`.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths: dict[int, Path] = {}
    for request in dict.fromkeys(requests):
        numbers = [i for i, other in enumerate(requests) if other == request]
        chosen = [seeds[i] for i in numbers]
        modality, patch = MODALITIES[request.modality], model.config.patch
        payloads = generate_payloads(model, request, chosen, sampling, precision, show)
        for number, payload in zip(numbers, payloads, strict=True):
            values = np.frombuffer(payload, np.uint8)
            made = modality.from_view(request.header, values, request.view, patch)
            paths[number] = modality.write(made, out / f"{modality.name}-{number:03d}", suffix)
    return [path for _, path in sorted(paths.items())]


@torch.no_grad()
def generate_payloads(
    model: Megabyte,
    request: Request,
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    show: Callable[[bytes], object] | None = None,
) -> list[bytes]:
    """Draw a payload for each seed, prompts included.

    A payload depends on its own seed, not on the others (in bf16 and on a GPU the batch may
    change the last bits of the logits, and so a byte). One that is longer than the model's context
    goes on in pieces, as in training: each opens with the preamble at its own offset.

    Args:
        show: is given each byte of the first payload when it is there, the prompt first.
    """
    device, count = model.lm_head.weight.device, len(seeds)
    if count > (most := _most_together(device, precision)):
        return [
            payload
            for i in range(0, count, most)
            for payload in generate_payloads(
                model, request, seeds[i : i + most], sampling, precision, None if i else show
            )
        ]
    allowed = torch.from_numpy(request.guide.allowed).to(device)  # [S, ROOM + 1, V]
    following = torch.from_numpy(request.guide.next).to(device)  # [S, 256]
    pieces = _pieces(request, model.config.context, model.config.patch)
    payload = torch.zeros(count, request.size, dtype=torch.int64, device=device)  # [B, n]
    at = len(request.prompt)
    payload[:, :at] = torch.tensor(list(request.prompt), dtype=torch.int64)
    lengths = torch.full((count,), at, device=device)
    state = torch.full((count,), request.guide.follow(request.prompt), device=device)
    codes = torch.full((count,), MODALITIES[request.modality].code, device=device)
    noise = Noise(seeds, device)
    if show:
        show(request.prompt)

    console = Console(stderr=True)
    is_hidden = show is not None or not console.is_terminal
    bar = Progress(console=console, transient=True, disable=is_hidden)
    with autocast(device, precision), bar as progress:
        task = progress.add_task(f"{count} x {request.modality}", total=request.size, completed=at)
        longest = max(len(piece.given) + piece.stop - piece.start for piece in pieces)
        decoder = Decoder(model, count, longest)
        for piece in pieces:
            begins = True
            while at < piece.stop and bool((lengths == at).any()):
                if begins:
                    given = torch.from_numpy(piece.given.astype(np.int64)).to(device)
                    prompts = [torch.cat([given, row[piece.start : at]]) for row in payload]
                    logits, begins = decoder.prefill(prompts, codes), False
                else:
                    logits = decoder.step(payload[:, at - 1])
                room = min(request.size - at, generation_guides.ROOM) * (
                    lengths == at
                )  # [B], 0 at an end
                ids = sample(logits, sampling, noise.draw(), allowed[state, room])
                payload[:, at] = ids.clamp(max=255)
                lengths += ids < framing.PAD
                state = following[state, payload[:, at]]
                at += 1
                progress.advance(task)
                if show and lengths[0] == at:
                    show(bytes([int(ids[0])]))
    values = payload.to("cpu", torch.uint8).numpy()
    return [row[:length].tobytes() for row, length in zip(values, lengths.tolist(), strict=True)]


def _most_together(device: torch.device, precision: str) -> int:
    """How many files are drawn at once: so many that each is what it would be alone, on a CPU."""
    return BIT_IDENTICAL_ROWS if device.type == "cpu" and precision == "fp32" else sys.maxsize


def _pieces(request: Request, length: int, patch: int) -> list[_Piece]:
    """The pieces that have payload bytes to draw, in rows of `length` ids."""
    modality, given = MODALITIES[request.modality], request.given
    own = framing.Segment(modality, request.header, request.view, request.size)
    segments = [given.segment, own] if given else [own]
    before = np.frombuffer(given.payload if given else b"", np.uint8)
    parts = [(segment.modality, segment.size) for segment in segments]
    pieces = []
    for *others, last in framing.cut(parts, patch, lambda: length):
        start, stop = last.start, min(last.start + last.length, request.size)
        if last.segment < len(segments) - 1 or stop <= max(start, len(request.prompt)):
            continue
        framed = framing.frame(others, segments, lambda _, a, b: before[a:b], patch)
        opening = framing.preamble(modality, request.header, request.view, start, patch)
        pieces.append(_Piece(np.concatenate([framed.ids, opening]), start, stop))
    return pieces


@torch.no_grad()
def draw_headers(
    model: Megabyte,
    modality: str,
    view: str,
    choices: Sequence[Header],
    seeds: Sequence[int],
    sampling: Sampling,
) -> list[Header]:
    """Draw a header for each seed, byte by byte, so that it is one of `choices`."""
    kind, device = MODALITIES[modality], model.lm_head.weight.device
    if len(seeds) > (most := _most_together(device, "fp32")):
        return [
            header
            for i in range(0, len(seeds), most)
            for header in draw_headers(
                model, modality, view, choices, seeds[i : i + most], sampling
            )
        ]
    packed = np.array([list(kind.pack_header(header, view, 0)) for header in choices])
    decoder = Decoder(model, len(seeds), 1 + kind.header_size)
    codes = torch.full((len(seeds),), kind.code, device=device)
    ids = torch.full((len(seeds),), kind.som, device=device)  # [B]
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    decoder.prefill([nothing] * len(seeds), torch.zeros_like(codes))
    noise = Noise([seed + HEADER_SEED for seed in seeds], device)
    is_left = np.ones((len(seeds), len(choices)), np.bool_)  # choices that begin as was drawn
    for place in range(kind.header_size):
        logits = decoder.step(ids, codes)
        allowed = np.zeros((len(seeds), framing.VOCAB_SIZE), np.bool_)  # [B, V]
        for row, left in zip(allowed, is_left, strict=True):
            row[packed[left, place]] = True
        ids = sample(logits, sampling, noise.draw(), torch.from_numpy(allowed).to(device))
        is_left &= packed[:, place] == ids.cpu().numpy()[:, None]
    return [choices[int(left.argmax())] for left in is_left]
