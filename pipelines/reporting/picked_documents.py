"""Documents that a report shows: a typical one, the most and the least surprising one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bytelm.modalities import BY_CODE
from bytelm.modalities.base import Sample
from bytelm.pipelines.shards.format import OWN_FILE
from bytelm.pipelines.shards.reader import ShardSet

TYPICAL, MOST, LEAST = "typical", "most surprising", "least surprising"
TEXT_BYTES = 2000
SOUND_SECONDS = 2.0
SOUND_BYTES = 1 << 16
IMAGE_SIDE = 128
FILE_BYTES = 1 << 14
_LEAST_BYTES = 256
"""Documents below are not picked where there are others: their bits per byte are chance."""


@dataclass(frozen=True)
class Pick:
    """A scored document and why it is shown."""

    reason: str
    key: str
    set_path: str
    modality: str
    bits_per_byte: float
    """Figure of the whole document, as the evaluation scored it."""


def pick_documents(documents: Sequence[Mapping[str, Any]]) -> list[Pick]:
    """Pick the documents to show of each modality, the typical ones of all modalities first.

    The typical one is the median of bits per byte. Among equals, the key decides.

    Args:
        documents: entries `key`, `set`, `modality`, `bytes`, `bits` of an evaluation.
    """
    picks = []
    for modality in (m.name for m in BY_CODE):
        scored = [d for d in documents if d["modality"] == modality and d["bytes"]]
        scored = [d for d in scored if d["bits"] is not None]  # the model diverged on the others
        usual = [d for d in scored if d["bytes"] >= _LEAST_BYTES] or scored
        ranked = sorted(usual, key=lambda d: (d["bits"] / d["bytes"], d["set"], d["key"]))
        places = {len(ranked) // 2: TYPICAL, len(ranked) - 1: MOST, 0: LEAST}
        if len(ranked) < 3:
            places = dict(zip(range(len(ranked)), (LEAST, MOST), strict=False))
        for place, reason in places.items() if len(ranked) > 1 else ((0, "the only one"),):
            if place < len(ranked):
                d = ranked[place]
                ratio = d["bits"] / d["bytes"]
                picks.append(Pick(reason, d["key"], d["set"], modality, ratio))
    order = {TYPICAL: 0, MOST: 1, LEAST: 2}
    return sorted(picks, key=lambda pick: order.get(pick.reason, 0))


def read_pick(shard_set: ShardSet, split: str, pick: Pick) -> Sample | None:
    """The first sample of a picked document's modality; None if the set does not have it.

    Raises DamageError for a damaged set.
    """
    for shard in shard_set.split(split):
        for row in shard_set.index(shard):
            is_modality = BY_CODE[row["modality"]].name == pick.modality
            if is_modality and row["size"] and shard_set.key(shard, row) == pick.key:
                return shard_set.sample(shard, row)
    return None


def excerpt(sample: Sample) -> tuple[Sample, str]:
    """A part of a sample that is scored in seconds, and words for it; empty for the whole."""
    if sample.modality == "text":
        return _beginning(sample, _whole_characters(sample.data), "the first {:,} bytes of {:,}")
    if sample.is_file:
        return _beginning(sample, FILE_BYTES, "the first {:,} bytes of the file's {:,}")
    return (_image_part if sample.modality == "image" else _sound_part)(sample)


def _beginning(sample: Sample, size: int, words: str) -> tuple[Sample, str]:
    if len(sample.data) <= size:
        return sample, ""
    return replace(sample, data=sample.data[:size]), words.format(size, len(sample.data))


def _whole_characters(data: bytes) -> int:
    """Most bytes up to TEXT_BYTES that do not end inside a character of UTF-8."""
    end = TEXT_BYTES
    while end > TEXT_BYTES - 4 and len(data) > end and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _image_part(sample: Sample) -> tuple[Sample, str]:
    """The middle of a large image."""
    header = sample.header
    width, height = min(header.width, IMAGE_SIDE), min(header.height, IMAGE_SIDE)
    if (width, height) == (header.width, header.height):
        return sample, ""
    pixels = np.frombuffer(sample.data, np.uint8).reshape(header.height, header.width, -1)
    top, left = (header.height - height) // 2, (header.width - width) // 2
    part = pixels[top : top + height, left : left + width]
    cut = replace(sample, header=header._replace(width=width, height=height), data=part.tobytes())
    return cut, f"{width} × {height} pixels from the middle of {header.width} × {header.height}"


def _sound_part(sample: Sample) -> tuple[Sample, str]:
    """The beginning of a long sound."""
    header = sample.header
    frame_bytes = header.channels * (3 if sample.is_deep else 2)
    frames = min(round(SOUND_SECONDS * header.rate), SOUND_BYTES // frame_bytes)
    size = max(1, frames) * frame_bytes
    if len(sample.data) <= size:
        return sample, ""
    seconds = [n / frame_bytes / header.rate for n in (size, len(sample.data))]
    part = replace(sample, data=sample.data[:size])
    return part, f"the first {seconds[0]:.2g} s of {seconds[1]:,.1f} s"


def first_samples(shard_set: ShardSet, split: str, modality: str, count: int) -> list[Sample]:
    """The first decoded samples of a modality in a split, at most `count` of them."""
    found: list[Sample] = []
    for shard in shard_set.split(split):
        for row in shard_set.index(shard):
            is_wanted = BY_CODE[row["modality"]].name == modality and row["size"]
            if is_wanted and row["is_file"] != OWN_FILE and len(found) < count:
                found.append(shard_set.sample(shard, row))
    return found
