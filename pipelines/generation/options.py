"""From the options of `bytelm generate` to requests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, Header
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.generation.generate import draw_headers
from bytelm.pipelines.generation.media import Source, read_sample
from bytelm.pipelines.generation.request import (
    Condition,
    Request,
    audio_request,
    condition_from_file,
    condition_from_text,
    image_request,
    text_request,
)
from bytelm.pipelines.generation.sampling_defaults import SamplingChoices, default_sampling


@dataclass(frozen=True)
class GenerateOptions:
    """A user's wishes for generation. Raises ValueError for values that no model can satisfy."""

    modality: str = "text"
    prompt: Source | None = None
    """A text to go on with; or an image or sound file to begin with."""
    condition_on: Source | None = None
    """A caption or transcript that an image or sound follows; or the file that a text describes."""
    count: int = 1
    """Number of files."""
    batch: int | None = None
    """The most files that are drawn at once; None chooses by the memory that is free."""
    seed: int = 0
    """Seed of the first file; each further file has the next one."""
    choices: SamplingChoices = field(default_factory=SamplingChoices)
    """Settings of the draws of payloads and of headers."""
    precision: str = "fp32"
    max_bytes: int = 512
    """Longest text in bytes, prompt included."""
    allow_invalid_utf8: bool = False
    """Allow texts that are not valid UTF-8."""
    size: tuple[int, int] | None = None
    """Width and height of an image in pixels; None takes the prompt's, or else draws them."""
    prompt_rows: int = 16
    """Rows of pixels to keep of an image prompt."""
    seconds: float = 1.0
    """Length of a sound, prompt included."""
    rate: int | None = None
    """Samples per second and channel of a sound; None takes the prompt's, or else draws it."""
    channels: int | None = None
    """Channels: 1 or 3 of an image, 1 to 255 of a sound; None takes the prompt's, or else draws
    them with the size or the rate."""
    prompt_seconds: float = 0.25
    """Seconds to keep of a sound prompt."""

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(
                f"no modality {self.modality!r}: choose one of {', '.join(MODALITIES)}"
            )
        if self.count < 1:
            raise ValueError(f"--count is {self.count}, and must be at least 1")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"--batch is {self.batch}, and must be at least 1")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"--size is {self.size}: give a width and a height of at least 1")
        if self.modality == "image" and self.channels not in (None, 1, 3):
            raise ValueError(f"an image has 1 or 3 channels, not {self.channels}")

    @property
    def seeds(self) -> range:
        """The seed of each file."""
        return range(self.seed, self.seed + self.count)


def build_requests(
    model: Megabyte, dataset_info: DatasetInfo, options: GenerateOptions
) -> list[Request]:
    """The request of each file.

    Raises ValueError for options that do not fit the prompt, the model or its training set, and
    for files that cannot be read.
    """
    condition = _condition(model, dataset_info, options)
    if options.modality == "text":
        return [_text_request(dataset_info, options, condition)] * options.count
    build = _image_requests if options.modality == "image" else _audio_requests
    return build(model, dataset_info, options, condition)


def sampling_of(
    model: Megabyte, dataset_info: DatasetInfo, options: GenerateOptions, request: Request
) -> Sampling:
    """The settings of a request's draws: those that the user gives, over the model's defaults.

    Raises ValueError for values out of range.
    """
    default = default_sampling(model, dataset_info, options.modality, len(request.prompt))
    return options.choices.over(default)


def _condition(
    model: Megabyte, dataset_info: DatasetInfo, options: GenerateOptions
) -> Condition | None:
    source, views = options.condition_on, dataset_info.views
    if source is None:
        return None
    if source in ("", b""):
        raise ValueError("--condition-on is empty: give a caption or a file, or leave it out")
    if options.modality == "text":
        condition = condition_from_file(source, views, model.config.patch)
    else:
        condition = condition_from_text(_text(source, "condition_on"), views["text"])
    _require_pair(condition.segment.modality.name, options.modality, dataset_info)
    return condition


def _require_pair(first: str, second: str, dataset_info: DatasetInfo) -> None:
    if (first, second) not in dataset_info.pairs:
        learned = ", ".join(f"{a} to {b}" for a, b in sorted(dataset_info.pairs)) or "none"
        raise ValueError(
            f"the model learned no pairs of {first} to {second} (of its training set: {learned}): "
            "train one on pairs in that order, or leave out --condition-on"
        )


def _text_request(
    dataset_info: DatasetInfo, options: GenerateOptions, condition: Condition | None
) -> Request:
    prompt = "" if options.prompt is None else _text(options.prompt, "prompt")
    view = dataset_info.views["text"]
    return text_request(prompt, options.max_bytes, view, options.allow_invalid_utf8, condition)


def _image_requests(
    model: Megabyte,
    dataset_info: DatasetInfo,
    options: GenerateOptions,
    condition: Condition | None,
) -> list[Request]:
    view = dataset_info.views["image"]
    prompt = None
    if options.prompt is not None:
        prompt = read_sample("image", options.prompt, MODALITIES["image"].options_for(view))
    headers: Sequence[Header]
    if options.size is not None:
        headers = [Header(*options.size, options.channels or 3)] * options.count
    elif prompt is not None:
        headers = [prompt.header] * options.count
    else:
        headers = _draw_headers(model, dataset_info, options, "--size")
    return [image_request(h, view, prompt, options.prompt_rows, condition) for h in headers]


def _audio_requests(
    model: Megabyte,
    dataset_info: DatasetInfo,
    options: GenerateOptions,
    condition: Condition | None,
) -> list[Request]:
    prompt = None
    headers: Sequence[Header]
    if options.prompt is not None:
        decode = DecodeOptions(audio_rate=options.rate, audio_channels=options.channels)
        prompt = read_sample("audio", options.prompt, decode)
        headers = [prompt.header] * options.count
    elif options.rate is not None:
        headers = [Header(rate=options.rate, channels=options.channels or 1)] * options.count
    else:
        headers = _draw_headers(model, dataset_info, options, "--rate")
    view, seconds = dataset_info.views["audio"], options.seconds
    return [
        audio_request(h, view, seconds, prompt, options.prompt_seconds, condition) for h in headers
    ]


def _draw_headers(
    model: Megabyte, dataset_info: DatasetInfo, options: GenerateOptions, way_out: str
) -> list[Header]:
    """A header for each file among those of the training set; `way_out` is the flag that names one.

    Raises ValueError where the training set has none with `options.channels` channels.
    """
    modality = options.modality
    choices = [
        header
        for header in dataset_info.headers.get(modality, ())
        if options.channels in (None, header.channels)
    ]
    if not choices:
        raise ValueError(
            f"the model's training set had no {modality} of the kind to draw a header from: give "
            f"{way_out}"
        )
    view = dataset_info.views[modality]
    sampling = options.choices.over(default_sampling(model, dataset_info, modality, 0))
    return draw_headers(model, modality, view, choices, options.seeds, sampling, options.batch)


def _text(source: Source, option: str) -> str:
    """An option that has to be a text."""
    if isinstance(source, bytes | os.PathLike):
        raise ValueError(f"{option} is {source!r}: give a text, as a string")
    return source
