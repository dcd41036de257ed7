"""The bits that a model needs for a file: its surprise map, and its size compressed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bytelm.modalities.base import Sample
from bytelm.pipelines.compression.compress import compress_documents
from bytelm.pipelines.compression.documents import decode_sample, encode_file
from bytelm.pipelines.evaluation.codec_sizes import codec_file_sizes, missing_codecs
from bytelm.pipelines.evaluation.sample_scoring import sample_nats
from bytelm.pipelines.reporting.surprise_maps import SurpriseMap, surprise_map
from bytelm.pipelines.serving.drawing import LoadedModel
from bytelm.pipelines.serving.jobs import Job


def map_surprise(loaded: LoadedModel, sample: Sample, job: Job) -> SurpriseMap:
    """The surprise map of a sample, scored as `bytelm evaluate` does, plainly and in fp32.

    Raises ValueError for an empty sample and one without the model's view.
    """
    view, patch = loaded.dataset_info.views[sample.modality], loaded.model.config.patch
    nats = sample_nats(loaded.model, sample, view, job.check)
    return surprise_map(sample, nats / math.log(2), view, patch)


@dataclass(frozen=True)
class Compressed:
    """A file's compressed sizes in bytes."""

    name: str
    """Name of the file as it is restored."""
    container: bytes
    """The file under the model; `bytelm decompress` restores it with the same model."""
    size: int
    """Bytes of the file as it is."""
    modality: str
    """The modality as which the container holds it."""
    payload_size: int
    """Bytes that the model and the codecs code: pixels, samples, or those of the file."""
    codecs: dict[str, int]
    """Compressed bytes by codec."""
    missing: dict[str, str]
    """Codecs that this machine lacks, and the command that brings each."""


@dataclass(frozen=True)
class Coding:
    """Progress of a compression, in bytes."""

    coded: int
    total: int


def compress_file(loaded: LoadedModel, name: str, data: bytes, job: Job) -> Compressed:
    """Compress a file under the model, and what the model codes of it by codecs.

    Args:
        name: the file's own name.
        data: its content, which its decoder is known to survive.
    """
    views, patch = loaded.dataset_info.views, loaded.model.config.patch
    document = encode_file(name, data, views, keep_files=False, patch=patch)
    segment, size, coded = document.segment, document.segment.size, 0

    def advance(count: int) -> None:
        nonlocal coded
        job.check()
        coded += count
        job.show(Coding(min(coded, size), size))

    packed = compress_documents(loaded.model, views, [(name, data)], advance=advance)
    codecs = codec_file_sizes(decode_sample(document, patch), document.payload, job.check)
    kind = segment.modality.name
    missing = missing_codecs([kind])
    return Compressed(document.entry.name, packed, len(data), kind, size, codecs, missing)
