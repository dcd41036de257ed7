"""Requests: header, size, first bytes and guide of a payload, and what precedes it."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bytelm.modalities import MODALITIES, framing, generation_guides
from bytelm.modalities.base import FILE_VIEW, Header, Sample
from bytelm.pipelines.generation.media import Source, detect_modality, read_sample, source_name

MAX_PAYLOAD_BYTES = (1 << 32) - 1
"""Limit of the 32-bit payload offset in a piece's header."""


@dataclass(frozen=True)
class Condition:
    """The segment before the generated one: a caption, a transcript, or a file to describe."""

    segment: framing.Segment
    payload: bytes


@dataclass(frozen=True)
class Request:
    """A payload to generate.

    Raises ValueError for the view `file`, since no guide keeps the bytes of a PNG or FLAC file
    valid, and for a size above MAX_PAYLOAD_BYTES, and for a width, height, rate or number
    of channels that no header holds.
    """

    modality: str
    header: Header
    view: str
    size: int
    """Payload bytes, the prompt's included: the exact number of an image or a sound, the largest
    number of a text."""
    prompt: bytes = b""
    """The payload's first bytes, in the view."""
    condition: Condition | None = None
    guide: generation_guides.Guide = field(default_factory=generation_guides.fixed, compare=False)
    """Which ids may come next in the payload."""

    @property
    def room(self) -> int:
        """Payload bytes to draw: as many, or of a text at most."""
        return self.size - len(self.prompt)

    def __post_init__(self) -> None:
        if self.view == FILE_VIEW:
            raise ValueError(
                f"the model reads {self.modality} as the files' own bytes, which cannot be kept "
                "valid while they are drawn: train one on another view to generate"
            )
        try:
            MODALITIES[self.modality].pack_header(self.header, self.view, 0)
        except struct.error as error:
            fields = ", ".join(f"{k} {v}" for k, v in self.header._asdict().items() if v)
            raise ValueError(f"no header holds {fields} ({error}): ask for less") from error
        if self.size > MAX_PAYLOAD_BYTES:
            raise ValueError(
                f"{self.size:,} bytes of {self.modality}: a document has at most "
                f"{MAX_PAYLOAD_BYTES:,}, so ask for less"
            )


def text_request(
    prompt: str,
    size: int,
    view: str,
    allow_invalid_utf8: bool = False,
    condition: Condition | None = None,
) -> Request:
    """A text of at most `size` bytes that begins with a prompt."""
    raw = prompt.encode()
    _require_room(len(raw), size, "bytes")
    guide = generation_guides.any_text() if allow_invalid_utf8 else generation_guides.utf8()
    return Request("text", Header(), view, size, raw, condition, guide)


def image_request(
    header: Header,
    view: str,
    prompt: Sample | None = None,
    prompt_rows: int = 0,
    condition: Condition | None = None,
) -> Request:
    """An image of a header that begins with the first `prompt_rows` rows of another image."""
    size = MODALITIES["image"].payload_size(header.width * header.height * header.channels, view)
    if prompt is None:
        return Request("image", header, view, size, condition=condition)
    if view not in ("raster", "deep"):
        raise ValueError(
            f"the model's images are in the view {view!r}, where the top of an image does not "
            "come first: a prompt needs a model of the view 'raster'"
        )
    if (prompt.header.channels, prompt.header.width) != (header.channels, header.width):
        raise ValueError(
            f"the prompt is {prompt.header.width} pixels wide with {prompt.header.channels} "
            f"channels, the image to generate {header.width} with {header.channels}: give it the "
            "same"
        )
    _require_room(prompt_rows, min(header.height, prompt.header.height), "rows")
    payload = MODALITIES["image"].to_view(prompt, view, patch=1).tobytes()
    raw = payload[: prompt_rows * size // header.height]
    return Request("image", header, view, size, raw, condition)


def audio_request(
    header: Header,
    view: str,
    seconds: float,
    prompt: Sample | None = None,
    prompt_seconds: float = 0.0,
    condition: Condition | None = None,
) -> Request:
    """A sound of a header and a length that begins with the first seconds of another sound."""
    audio, frame_bytes = MODALITIES["audio"], 2 * header.channels
    frames = round(seconds * header.rate) if math.isfinite(seconds) else 0
    if frames < 1:
        raise ValueError(
            f"a sound of {seconds} seconds at {header.rate} Hz has no sample: make it longer"
        )
    size = audio.payload_size(frame_bytes * frames, view)
    if prompt is None:
        return Request("audio", header, view, size, condition=condition)
    prompt_frames = round(prompt_seconds * header.rate)
    _require_room(prompt_frames, min(frames, len(prompt.data) // frame_bytes), "samples")
    start = replace(prompt, data=prompt.data[: prompt_frames * frame_bytes])
    raw = audio.to_view(start, view, patch=1).tobytes()
    return Request("audio", header, view, size, raw, condition)


def condition_from_text(content: str, view: str) -> Condition:
    """A caption or a transcript."""
    payload = content.encode()
    return Condition(framing.Segment(MODALITIES["text"], Header(), view, len(payload)), payload)


def condition_from_file(source: Source, views: Mapping[str, str], patch: int) -> Condition:
    """An image or a sound that a text describes."""
    name = detect_modality(source)
    if name not in ("image", "audio"):
        raise ValueError(f"{source_name(source)} is no image and no sound that a text can describe")
    view = views[name]
    sample = read_sample(name, source, MODALITIES[name].options_for(view))
    payload = MODALITIES[name].to_view(sample, view, patch).tobytes()
    segment = framing.Segment(MODALITIES[name], sample.header, view, len(payload))
    return Condition(segment, payload)


def _require_room(prompt: int, room: int, unit: str) -> None:
    if prompt >= room:
        raise ValueError(
            f"the prompt has {prompt} {unit} and there are {room} in all: "
            "give a shorter prompt, or ask for more"
        )
