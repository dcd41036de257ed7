"""Drawing for the playground: samples of a request, shown while they grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Sample
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.generation.generate import generate_payloads
from bytelm.pipelines.generation.options import GenerateOptions, build_requests, sampling_of
from bytelm.pipelines.generation.request import Request
from bytelm.pipelines.serving.jobs import Job
from bytelm.pipelines.serving.limits import MAX_DRAWN_BYTES

SHOW_SECONDS = 0.25
"""Time between two states that the page shows."""
UNDRAWN = 128
"""Value of pixels that are not drawn yet."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, what it was trained on, and its name for people."""

    model: Megabyte
    dataset_info: DatasetInfo
    name: str


@dataclass(frozen=True)
class Drawing:
    """Results of a request, as far as they are drawn."""

    samples: list[Sample]
    prompt_size: int
    """Payload bytes at the start of each that were given."""
    drawn: int
    """Payload bytes that were drawn, of all results."""
    total: int
    """Payload bytes that there are to draw: of texts, the most."""
    seconds: float
    """Time since the first byte."""

    @property
    def speed(self) -> float:
        """Bytes per second."""
        return self.drawn / self.seconds if self.seconds else 0.0


def draw(loaded: LoadedModel, options: GenerateOptions, job: Job) -> Drawing:
    """Draw the samples that some options ask for, and show them on the way.

    Raises ValueError for options that do not fit the model, and for more bytes than the server
    draws.
    """
    requests = build_requests(loaded.model, loaded.dataset_info, options)
    size = sum(request.size for request in requests)
    if size > MAX_DRAWN_BYTES:
        raise ValueError(
            f"{size:,} bytes are too much to draw at once: ask for {MAX_DRAWN_BYTES:,} at most."
        )
    sampling = sampling_of(loaded.model, loaded.dataset_info, options, requests[0])
    progress = _Progress(requests, loaded.model.config.patch, job)
    for request in dict.fromkeys(requests):
        numbers = [i for i, other in enumerate(requests) if other == request]
        payloads = generate_payloads(
            loaded.model,
            request,
            [options.seeds[i] for i in numbers],
            sampling,
            options.precision,
            advance=progress.advance,
            watch=partial(progress.watch, numbers),
        )
        progress.keep(numbers, payloads)
    return progress.drawing()


class _Progress:
    """The payloads of all requests as far as they are drawn; tells the job now and then."""

    def __init__(self, requests: list[Request], patch: int, job: Job) -> None:
        self._requests, self._patch, self._job = requests, patch, job
        self._payloads = [request.prompt for request in requests]
        self._drawn = 0
        self._begin = self._shown = time.monotonic()

    def advance(self, drawn: int) -> None:
        """Count bytes; raises JobStoppedError where the job is to stop."""
        self._drawn += drawn
        self._job.check()

    def watch(self, numbers: list[int], payloads: Callable[[], list[bytes]]) -> None:
        """Show some payloads, where the last time is long ago."""
        if time.monotonic() - self._shown >= SHOW_SECONDS:
            self.keep(numbers, payloads())

    def keep(self, numbers: list[int], payloads: list[bytes]) -> None:
        """Show some payloads."""
        for number, payload in zip(numbers, payloads, strict=True):
            self._payloads[number] = payload
        self._shown = time.monotonic()
        self._job.show(self.drawing())

    def drawing(self) -> Drawing:
        """All results as they are."""
        pairs = zip(self._requests, self._payloads, strict=True)
        return Drawing(
            [partial_sample(request, payload, self._patch) for request, payload in pairs],
            len(self._requests[0].prompt),
            self._drawn,
            sum(request.size - len(request.prompt) for request in self._requests),
            time.monotonic() - self._begin,
        )


def partial_sample(request: Request, payload: bytes, patch: int) -> Sample:
    """The sample of a payload's first bytes: an image with grey where nothing is drawn yet, the
    start of a sound or of a text."""
    modality, values = MODALITIES[request.modality], np.frombuffer(payload, np.uint8)
    if request.modality == "image":
        whole = np.full(request.size, UNDRAWN, np.uint8)
        whole[: len(values)] = values
        values = whole
    if request.modality == "audio":
        frame = modality.view_value_bytes[request.view] * request.header.channels
        values = values[: len(values) // frame * frame]
    return modality.from_view(request.header, values, request.view, patch)
