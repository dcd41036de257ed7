"""What to generate: from a user's words and files to the payload's header, size and first bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bytelm.modalities import MODALITIES, framing, generation_guides
from bytelm.modalities.base import FILE_VIEW, DecodeOptions, Header, MediaError, Sample
from bytelm.modalities.detect import START_BYTES, modality_of
from bytelm.pipelines.data.dataset_info import DatasetInfo


@dataclass(frozen=True)
class Given:
    """A segment that stands before the one to make: a caption, or what is to be described."""

    segment: framing.Segment
    payload: bytes


@dataclass(frozen=True)
class Request:
    """A payload to make. Raises ValueError for the view `file`, which nothing keeps valid."""

    modality: str
    header: Header
    view: str
    size: int
    """Payload bytes in all, the prompt's included: exactly so many of an image or of a sound,
    at most so many of a text."""
    prompt: bytes = b""
    """The payload's first bytes, in the view."""
    given: Given | None = None
    guide: generation_guides.Guide = field(default_factory=generation_guides.fixed, compare=False)
    """What may come next in the payload."""

    def __post_init__(self) -> None:
        if self.view == FILE_VIEW:
            raise ValueError(
                f"the model knows {self.modality} by the files' own bytes, and nothing keeps those "
                "valid while they are drawn: train one on another view to generate"
            )


def text_request(
    prompt: str, size: int, view: str, any_bytes: bool, given: Given | None = None
) -> Request:
    """A text of at most `size` bytes that begins with a prompt; UTF-8 unless `any_bytes`."""
    raw = prompt.encode()
    _require_room(len(raw), size, "bytes")
    guide = generation_guides.any_text() if any_bytes else generation_guides.utf8()
    return Request("text", Header(), view, size, raw, given, guide)


def image_request(
    header: Header, view: str, top: Sample | None, rows: int, given: Given | None = None
) -> Request:
    """An image of a header, of which the top `rows` rows of another one are given."""
    size = MODALITIES["image"].payload_size(header.width * header.height * header.channels, view)
    if top is None:
        return Request("image", header, view, size, given=given)
    if view != "raster":
        raise ValueError(
            f"the model's images are in the view {view!r}, where the top of an image does not "
            "come first: a prompt needs a model of the view 'raster'"
        )
    if (top.header.channels, top.header.width) != (header.channels, header.width):
        raise ValueError(
            f"the prompt is {top.header.width} pixels wide with {top.header.channels} channels, "
            f"the image to make {header.width} with {header.channels}: give it the same"
        )
    _require_room(rows, min(header.height, top.header.height), "rows")
    prompt = top.data[: rows * header.width * header.channels]
    return Request("image", header, view, size, prompt, given)


def audio_request(
    header: Header,
    view: str,
    seconds: float,
    start: Sample | None,
    given_seconds: float,
    given: Given | None = None,
) -> Request:
    """A sound of a header and a length, of which the first seconds of another one are given."""
    audio, frame = MODALITIES["audio"], 2 * header.channels
    frames = round(seconds * header.rate)
    if frames < 1:
        raise ValueError(
            f"a sound of {seconds} seconds at {header.rate} Hz has no sample: make it longer"
        )
    size = audio.payload_size(frame * frames, view)
    if start is None:
        return Request("audio", header, view, size, given=given)
    taken = round(given_seconds * header.rate)
    _require_room(taken, min(frames, len(start.data) // frame), "samples")
    cut = replace(start, data=start.data[: taken * frame])
    return Request("audio", header, view, size, audio.to_view(cut, view, 1).tobytes(), given)


def given_text(content: str, view: str) -> Given:
    """A caption or a transcript."""
    payload = content.encode()
    if not payload:
        raise ValueError("--condition-on is empty: give a caption, or leave it out")
    return Given(framing.Segment(MODALITIES["text"], Header(), view, len(payload)), payload)


def given_file(path: Path, views: Mapping[str, str], patch: int) -> Given:
    """An image or a sound to be described."""
    try:
        with open(path, "rb") as file:
            name = modality_of(file.read(START_BYTES))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if name not in ("image", "audio"):
        raise ValueError(f"{path} is no image and no sound that a text could describe")
    view = views[name]
    sample = read_sample(name, path, DecodeOptions(keep_files=view == FILE_VIEW))
    payload = MODALITIES[name].to_view(sample, view, patch).tobytes()
    segment = framing.Segment(MODALITIES[name], sample.header, view, len(payload))
    return Given(segment, payload)


def require_pair(first: str, second: str, seen: DatasetInfo) -> None:
    """ValueError where the model's training set had no such pair of segments."""
    if (first, second) not in seen.pairs:
        known = ", ".join(f"{a} to {b}" for a, b in sorted(seen.pairs)) or "none"
        raise ValueError(
            f"the model learned no pairs of {first} to {second} (of its training set: {known}): "
            "train one on pairs in that order, or leave out --condition-on"
        )


def header_choices(
    modality: str, seen: DatasetInfo, channels: int | None, option: str
) -> Sequence[Header]:
    """The headers of the training set, with so many channels; ValueError where there are none."""
    known = seen.headers.get(modality, ())
    choices = [h for h in known if channels in (None, h.channels)]
    if not choices:
        raise ValueError(
            f"the model's training set had no {modality} of the kind to draw a header from: give "
            f"{option}"
        )
    return choices


def read_sample(modality: str, path: Path, options: DecodeOptions) -> Sample:
    """The sample of a file; ValueError where it is none."""
    try:
        with open(path, "rb") as file:
            return MODALITIES[modality].decode(file, options)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except MediaError as error:
        raise ValueError(f"{path} is no {modality} to begin with: {error}") from error


def _require_room(given: int, room: int, unit: str) -> None:
    if given >= room:
        raise ValueError(
            f"the prompt has {given} {unit} and there are {room} in all: "
            "give a shorter prompt, or ask for more"
        )
