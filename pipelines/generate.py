"""Generation: a header, a prompt, then payload bytes one by one, until a valid file is complete.

B files made at once    L ids of the model's context    P ids in a patch    V ids
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import FILE_VIEW, DecodeOptions, Header, MediaError, Sample
from bytelm.modalities.guides import FixedGuide, Guide, Utf8Guide
from bytelm.model.decoding import Decoder
from bytelm.model.megabyte import Megabyte
from bytelm.model.sampling import sample
from bytelm.pipelines.engine import autocast


@dataclass(frozen=True)
class Request:
    """What to generate."""

    modality: str
    header: Header
    size: int
    """Payload bytes in all, the prompt's included: exactly so many of an image or of a sound,
    at most so many of a text."""
    prompt: bytes = b""
    """The payload's first bytes, under the model's view."""


@dataclass(frozen=True)
class Sampling:
    """How to draw."""

    temperature: float = 1.0
    """0 takes the most probable byte."""
    top_p: float = 1.0
    """Draw from the fewest ids that together have this probability."""
    seed: int = 0
    """File number i is drawn with seed + i, whatever else is made at once."""


def text_request(prompt: str, size: int) -> Request:
    """A text of at most `size` bytes that begins with a prompt."""
    raw = prompt.encode()
    _require_room(len(raw), size, "bytes")
    return Request("text", Header(), size, raw)


def image_request(
    width: int, height: int, channels: int, prompt: Path | None, rows: int, view: str
) -> Request:
    """An image of a size; `prompt` is a file whose top `rows` rows are given."""
    header = Header(width=width, height=height, channels=channels)
    size = MODALITIES["image"].payload_size(width * height * channels, view)
    if prompt is None:
        return Request("image", header, size)
    if view != "raster":
        raise ValueError(
            f"the model's images are in the view {view!r}, where the top of an image does not "
            "come first: a prompt needs a model of the view 'raster'"
        )
    given = _decoded("image", prompt, DecodeOptions())
    if given.header.channels != channels or given.header.width != width:
        raise ValueError(
            f"{prompt} is {given.header.width} pixels wide with {given.header.channels} channels, "
            f"the image to make {width} with {channels}: give it the same"
        )
    _require_room(rows, min(height, given.header.height), "rows")
    return Request("image", header, size, given.data[: rows * width * channels])


def audio_request(
    seconds: float, rate: int, channels: int, prompt: Path | None, given_seconds: float, view: str
) -> Request:
    """A sound of a length; `prompt` is a file whose first `given_seconds` are given."""
    audio = MODALITIES["audio"]
    header = Header(rate=rate, channels=channels)
    frames = round(seconds * rate)
    if frames < 1:
        raise ValueError(f"a sound of {seconds} seconds at {rate} Hz has no sample: make it longer")
    size = audio.payload_size(2 * channels * frames, view)
    if prompt is None:
        return Request("audio", header, size)
    given = _decoded("audio", prompt, DecodeOptions(audio_rate=rate, audio_channels=channels))
    taken = round(given_seconds * rate)
    _require_room(taken, min(frames, len(given.data) // (2 * channels)), "samples")
    start = replace(given, data=given.data[: taken * 2 * channels])
    return Request("audio", header, size, audio.to_view(start, view, 1).tobytes())


def _decoded(modality: str, path: Path, options: DecodeOptions) -> Sample:
    """The sample of a prompt's file; ValueError where it is none."""
    try:
        with open(path, "rb") as file:
            return MODALITIES[modality].decode(file, options)
    except OSError as error:
        raise ValueError(f"cannot read prompt {path}: {error.strerror}") from error
    except MediaError as error:
        raise ValueError(f"prompt {path} is no {modality} to begin with: {error}") from error


def _require_room(given: int, room: int, unit: str) -> None:
    if given >= room:
        raise ValueError(
            f"the prompt has {given} {unit} and there are {room} in all: "
            "give a shorter prompt, or ask for more"
        )


def generate(
    model: Megabyte,
    request: Request,
    view: str,
    count: int,
    sampling: Sampling,
    out: Path,
    precision: str,
) -> list[Path]:
    """Make `count` files, numbered from 0, in a folder; returns their paths.

    Raises ValueError for a request that does not suit the model, and for the view `file`, of
    which nothing keeps the bytes valid while they are drawn.
    """
    modality, patch = MODALITIES[request.modality], model.config.patch
    if view == FILE_VIEW:
        raise ValueError(
            f"the model knows {modality.name} by the files' own bytes, and nothing keeps those "
            "valid while they are drawn: train one on another view to generate"
        )
    modality.check_view(view, request.header.channels, patch)
    payloads = generate_payloads(model, request, view, count, sampling, precision)
    out.mkdir(parents=True, exist_ok=True)
    return [
        modality.write(
            modality.from_view(request.header, np.frombuffer(payload, np.uint8), view, patch),
            out / f"{modality.name}-{number:03d}",
        )
        for number, payload in enumerate(payloads)
    ]


@torch.no_grad()
def generate_payloads(
    model: Megabyte, request: Request, view: str, count: int, sampling: Sampling, precision: str
) -> list[bytes]:
    """Draw `count` payloads, prompts included. A payload that is longer than the model's context
    goes on in pieces, as in training: each opens with the preamble at its own offset."""
    modality, patch = MODALITIES[request.modality], model.config.patch
    device = model.lm_head.weight.device
    opening = framing.preamble_length(modality, patch)
    room = model.config.context - opening  # payload bytes of a piece
    payloads = [bytearray(request.prompt) for _ in range(count)]
    guides = [_guide(request) for _ in range(count)]
    generators = [torch.Generator().manual_seed(sampling.seed + i) for i in range(count)]
    pieces_done = len(request.prompt) // room
    anything = torch.ones(framing.VOCAB_SIZE, dtype=torch.bool)

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with autocast(device, precision), bar as progress:
        task = progress.add_task(f"{count} x {request.modality}", total=request.size)
        progress.advance(task, len(request.prompt))
        length = min(model.config.context, opening + framing.body_length(request.size, patch))
        decoder = Decoder(model, count, length)
        codes = torch.full((count,), modality.code, dtype=torch.int64, device=device)
        ended = [guide.done for guide in guides]
        while not all(ended):
            offset = pieces_done * room
            head = framing.preamble(modality, request.header, view, offset, patch)
            logits = decoder.prefill(
                [
                    torch.from_numpy(
                        np.concatenate([head, np.frombuffer(payload[offset:], np.uint8)])
                    )
                    .long()
                    .to(device)
                    for payload in payloads
                ],
                codes,
            )
            held = len(payloads[0]) - offset
            while not all(ended):
                allowed = torch.stack(
                    [
                        anything if over else torch.from_numpy(guide.allowed())
                        for over, guide in zip(ended, guides, strict=True)
                    ]
                ).to(device)
                ids = sample(logits, sampling.temperature, sampling.top_p, generators, allowed)
                for row, id_ in enumerate(ids.tolist()):
                    if ended[row]:
                        continue
                    if id_ == framing.EOM:
                        ended[row] = True
                        continue
                    payloads[row].append(id_)
                    guides[row].push(id_)
                    ended[row] = guides[row].done
                held += 1
                progress.advance(task)
                if held == room:
                    break
                if not all(ended):
                    logits = decoder.step(ids)
            pieces_done += 1
    return [bytes(payload) for payload in payloads]


def _guide(request: Request) -> Guide:
    guide: Guide = (Utf8Guide if request.modality == "text" else FixedGuide)(request.size)
    for byte in request.prompt:
        guide.push(byte)
    return guide
