"""Requests for the samples of a run: beginnings, sizes and captions of its own data, the same ones
at each step.

Each sample is small, so that drawing takes little of a run's time: images and sounds are those of
the data, cut to MAX_VALUES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from bytelm.modalities import BY_CODE, MODALITIES, framing
from bytelm.modalities.base import FILE_VIEW, Header, Sample
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.generation.request import (
    Condition,
    Request,
    audio_request,
    image_request,
    text_request,
)
from bytelm.pipelines.shards.format import DEEP, OWN_FILE, Shard
from bytelm.pipelines.shards.reader import ShardSet, header_of

MAX_VALUES = 12_288
"""Sub-pixels of an image, or samples of a sound over all channels, at most: 64 x 64 in colour, or
three quarters of a second at 16 kHz."""
TEXT_BYTES = 256
"""Bytes of a text, its prompt included."""
PROMPT_BYTES = 64
CONDITION_BYTES = 1_024
"""Bytes of a caption or transcript, at most."""
SOUND_PROMPT = 0.25
"""Part of a real sound that a drawn one begins with."""
FREE, CONTINUED = 4, 2
"""Samples without a prompt, and of each prompt or caption."""
PROMPTS = 2
"""Real files of a modality, or of a kind of pairs, that samples begin with or follow."""
MAX_DOCUMENTS = 1_000
"""Documents of a split that are looked at in each set."""


@dataclass(frozen=True)
class SampleRequest:
    """A request, the seeds of its samples, and what is shown beside them."""

    request: Request
    seeds: range
    title: str
    prompt: Sample | None = None
    """The real file whose beginning the samples have."""
    condition: Sample | None = None
    """The caption or file that the samples follow."""

    @property
    def drawn_bytes(self) -> int:
        """Bytes of all samples without their prompts, at most."""
        return len(self.seeds) * (self.request.size - len(self.request.prompt))


@dataclass(frozen=True)
class _Segment:
    """A segment as a set's index describes it; its bytes are read when they are needed."""

    shard_set: ShardSet
    shard: Shard
    row: np.void

    @property
    def modality(self) -> str:
        return BY_CODE[self.row["modality"]].name

    @property
    def fits(self) -> bool:
        """Whether `read` leaves nothing out of an image."""
        header = header_of(self.row)
        return header.width * header.height * header.channels <= MAX_VALUES

    def read(self) -> Sample:
        """The segment, cut to what a sample may have."""
        header, size = header_of(self.row), int(self.row["size"])
        is_deep = bool(self.row["is_file"] == DEEP)
        value_bytes = MODALITIES[self.modality].value_bytes[is_deep]
        if self.modality == "image":
            cut = _bounded(header)
            line = header.width * header.channels * value_bytes
            whole = self.shard_set.sample(self.shard, self.row, 0, cut.height * line)
            pixels = np.frombuffer(whole.data, np.uint8).reshape(cut.height, line)
            data = pixels[:, : cut.width * cut.channels * value_bytes].tobytes()
            return replace(whole, header=cut, data=data)
        stop = CONDITION_BYTES
        if self.modality == "audio":
            stop = MAX_VALUES // header.channels * header.channels * value_bytes
        return self.shard_set.sample(self.shard, self.row, 0, min(size, stop))


_Document = tuple[_Segment, ...]


def sample_requests(sets: Sequence[ShardSet], info: DatasetInfo) -> list[SampleRequest]:
    """The requests of a run, by modality and then by kind of pairs.

    Prompts and captions are of documents in `val`; of `train` where no document in `val` has any.
    A modality that is read as the files' own bytes cannot be drawn and has none.

    Raises:
        DamageError: for a document that is damaged.
    """
    val, train = ([*_documents(sets, split)] for split in ("val", "train"))
    drawable = {name: view for name, view in info.views.items() if view != FILE_VIEW}
    requests: list[SampleRequest] = []
    for modality, view in drawable.items():
        segments = _of_modality(val, modality) or _of_modality(train, modality)
        if segments:
            samples = [segment.read() for segment in segments[:PROMPTS]]
            requests += _BUILDERS[modality](samples, view, info)
    for kind in sorted(info.pairs):
        if "text" in kind and drawable.keys() >= set(kind):
            pairs = _of_kind(val, kind) or _of_kind(train, kind)
            requests += [_paired(*pair, drawable) for pair in pairs[:PROMPTS]]
    return requests


# --- documents of the sets ---


def _documents(sets: Sequence[ShardSet], split: str) -> Iterator[_Document]:
    """The first documents of a split of each set, without files' own bytes."""
    for shard_set in sets:
        left = MAX_DOCUMENTS
        for shard in shard_set.split(split):
            index = shard_set.index(shard)
            for number in np.unique(index["document"])[:left]:
                rows = index[index["document"] == number]
                if (rows["size"] > 0).all() and not (rows["is_file"] == OWN_FILE).any():
                    yield tuple(_Segment(shard_set, shard, row) for row in rows)
            left -= min(left, shard.documents)
            if not left:
                break


def _of_modality(documents: Sequence[_Document], modality: str) -> list[_Segment]:
    """The segments that begin a document, those that are shown whole first."""
    first = [document[0] for document in documents if document[0].modality == modality]
    others = [s for d in documents for s in d[1:] if s.modality == modality]
    return sorted(first or others, key=lambda segment: not segment.fits)


def _of_kind(documents: Sequence[_Document], kind: tuple[str, str]) -> list[tuple[Sample, Sample]]:
    """The first pairs of adjacent segments of two modalities, in either order."""
    pairs: list[tuple[Sample, Sample]] = []
    for document in documents:
        for one, other in pairwise(document):
            for first, second in ((one, other), (other, one)):
                if (first.modality, second.modality) == kind and len(pairs) < PROMPTS:
                    pairs.append((first.read(), second.read()))
    return pairs


# --- requests ---


def _texts(samples: Sequence[Sample], view: str, info: DatasetInfo) -> list[SampleRequest]:
    requests = []
    for sample in samples:
        beginning = _characters(sample.data[: min(PROMPT_BYTES, len(sample.data) // 2)])
        requests.append(
            SampleRequest(
                text_request(beginning, TEXT_BYTES, view),
                range(CONTINUED),
                "a text from its first words" if beginning else "a text",
                prompt=replace(sample, data=beginning.encode()),
            )
        )
    return requests


def _images(samples: Sequence[Sample], view: str, info: DatasetInfo) -> list[SampleRequest]:
    header = _typical_image(samples, info)
    free = SampleRequest(image_request(header, view), range(FREE), "an image without a prompt")
    finished = [
        SampleRequest(
            image_request(sample.header, view, sample, sample.header.height // 2),
            range(CONTINUED),
            "an image finished from its upper half",
            prompt=sample,
        )
        for sample in samples
        if view in ("raster", "deep") and sample.header.height > 1
    ]
    return [free, *finished]


def _sounds(samples: Sequence[Sample], view: str, info: DatasetInfo) -> list[SampleRequest]:
    requests = []
    for sample in samples:
        seconds = _seconds(sample)
        if sample.is_deep or round(seconds * sample.header.rate) < 1 / SOUND_PROMPT:
            request = audio_request(sample.header, view, seconds)
            requests.append(SampleRequest(request, range(CONTINUED), "a sound without a prompt"))
            continue
        request = audio_request(sample.header, view, seconds, sample, seconds * SOUND_PROMPT)
        title = "a sound finished from its first quarter"
        requests.append(SampleRequest(request, range(CONTINUED), title, prompt=sample))
    return requests


_Builder = Callable[[Sequence[Sample], str, DatasetInfo], list[SampleRequest]]
_BUILDERS: Mapping[str, _Builder] = {"text": _texts, "image": _images, "audio": _sounds}


def _paired(first: Sample, second: Sample, views: Mapping[str, str]) -> SampleRequest:
    """A request for a sample of the second's kind that follows the first."""
    modality, view = MODALITIES[first.modality], views[first.modality]
    if first.modality == "text":
        first = replace(first, data=_characters(first.data).encode())
    payload = modality.to_view(first, view, patch=1).tobytes()
    segment = framing.Segment(modality, first.header, view, len(payload))
    condition, view = Condition(segment, payload), views[second.modality]
    if second.modality == "text":
        request = text_request("", TEXT_BYTES, view, condition=condition)
    elif second.modality == "image":
        request = image_request(second.header, view, condition=condition)
    else:
        request = audio_request(second.header, view, _seconds(second), condition=condition)
    names = {"text": "a text", "image": "an image", "audio": "a sound"}
    title = f"{names[second.modality]} that follows {names[first.modality]}"
    return SampleRequest(request, range(CONTINUED), title, condition=first)


def _typical_image(samples: Sequence[Sample], info: DatasetInfo) -> Header:
    """The most frequent header of the training set's images, cut to what a sample may have."""
    headers = info.headers.get("image") or [sample.header for sample in samples]
    return _bounded(headers[0])


def _bounded(header: Header) -> Header:
    """The header of an image's upper left part of at most MAX_VALUES sub-pixels."""
    width, height, channels = header.width, header.height, header.channels
    scale = min(1.0, (MAX_VALUES / (width * height * channels)) ** 0.5)
    height = max(1, int(height * scale))
    width = max(1, min(width, MAX_VALUES // (height * channels)))
    return Header(width, height, channels)


def _seconds(sample: Sample) -> float:
    value_bytes = MODALITIES["audio"].value_bytes[sample.is_deep]
    frames = len(sample.data) // (value_bytes * sample.header.channels)
    return frames / sample.header.rate


def _characters(data: bytes) -> str:
    """The whole characters of a text's beginning."""
    return data.decode("utf-8", "ignore")
