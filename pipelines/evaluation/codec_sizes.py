"""Sizes of codecs on the bytes that a model is scored on, of whole files and of chunks.

`codec_settings` has the codecs; those of any bytes compress each payload, those of images and
sounds each decoded sample. Each payload, and each chunk of CHUNK bytes, is a file of its own.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from bytelm.modalities.base import Bytes, Sample
from bytelm.pipelines.evaluation import CHUNK
from bytelm.pipelines.evaluation.codec_settings import (
    BYTE_CODECS,
    CODECS,
    MEDIA_CODECS,
    ByteCodec,
    Codec,
    MediaCodec,
    installed,
    is_installed,
    uses_tool,
    version_of,
)
from bytelm.pipelines.evaluation.codec_tools import ToolError, ToolProcesses

if TYPE_CHECKING:
    import torch

WEIGHT_BYTES = 2
"""Bytes of a parameter in fp16."""
POLL_SECONDS = 0.25


class CodecSizes:
    """Sums of one modality over many samples: compressed bytes and payload bytes of each codec.

    `counts` are integers under names that do not depend on the data, and add up over ranks.
    """

    def __init__(self, modality: str) -> None:
        self.codecs = [c.name for c in installed(CODECS) if _is_of(c, modality)]
        self.counts: dict[str, int] = {
            f"{kind} {part} {name}": 0
            for kind in ("whole", "chunks")
            for part in ("compressed", "payload", "files", "failures")
            for name in self.codecs
        }
        self._taken = dict(self.counts)

    def add(self, kind: str, codec: str, compressed: int | None, payload: int) -> None:
        """Add a file, or the chunks of one.

        Args:
            kind: `whole` or `chunks`.
            codec: the codec's name.
            compressed: bytes that the codec makes of it; None where it failed.
            payload: bytes that the model is scored on.
        """
        self.counts[f"{kind} files {codec}"] += 1
        self.counts[f"{kind} failures {codec}"] += compressed is None
        self.counts[f"{kind} compressed {codec}"] += compressed or 0
        self.counts[f"{kind} payload {codec}"] += payload

    def take(self) -> dict[str, int]:
        """Return the part that was added since the last call; see `finished_work.Sums`."""
        before, self._taken = self._taken, dict(self.counts)
        return {name: count - before[name] for name, count in self.counts.items()}

    def put(self, taken: Mapping[str, int]) -> None:
        """Add what `take` returned elsewhere, with the same codecs."""
        for name, count in taken.items():
            self.counts[name] += count
        self._taken = dict(self.counts)

    def reduce(self, sum_over_ranks: Callable[[list[Any], torch.dtype], list[Any]]) -> None:
        """Replace every sum by its sum over ranks. Collective: every rank has to call it."""
        import torch

        counts = sum_over_ranks(list(self.counts.values()), torch.int64)
        self.counts = dict(zip(self.counts, counts, strict=True))

    def bits_per_byte(self, kind: str = "whole") -> dict[str, float]:
        """Compressed bits per payload byte of each codec that compressed every file it could hold.

        Args:
            kind: `whole` or `chunks`; images' and sounds' codecs compress no chunks.
        """
        return {
            name: 8 * self.counts[f"{kind} compressed {name}"] / payload
            for name in self.codecs
            if (payload := self.counts[f"{kind} payload {name}"])
            and not self.counts[f"{kind} failures {name}"]
        }

    def failures(self) -> dict[str, str]:
        """A line for each codec that failed on a file, and therefore has no figure."""
        lines = {}
        for name in self.codecs:
            for kind in ("chunks", "whole"):
                if failures := self.counts[f"{kind} failures {name}"]:
                    files = self.counts[f"{kind} files {name}"]
                    lines[name] = f"its tool failed on {failures:,} of {files:,} files"
        return lines


def measure_codecs(
    documents: Iterable[Sequence[tuple[Sample, Bytes]]], sizes: dict[str, CodecSizes], threads: int
) -> Iterator[int]:
    """Compress samples, whole and in chunks, with every codec that is installed.

    Args:
        documents: the samples of each document, each with its payload [n] under the view that the
            model is scored on.
        sizes: sums of each modality, to which the samples are added.
        threads: files compressed at once.
    Yields:
        the payload bytes of each document, in order, once it is added.
    Raises:
        OSError: for a full disk.
    """
    with _Encoders(threads) as encoders:
        waiting: deque[list[_SampleJobs]] = deque()
        for document in documents:
            waiting.append([encoders.submit(*sample, in_chunks=True) for sample in document])
            if sum(map(len, waiting)) > 2 * encoders.threads:
                yield sum(jobs.add_to(sizes) for jobs in waiting.popleft())
        while waiting:
            yield sum(jobs.add_to(sizes) for jobs in waiting.popleft())


def codec_file_sizes(
    sample: Sample, payload: Bytes, check: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Bytes of the file that each codec makes of one sample; codecs that fail are absent.

    Args:
        payload: [n] payload under the view that the model codes.
        check: is called four times a second, and may raise an error to stop the codecs.
    """
    with _Encoders(processors()) as encoders:
        jobs = encoders.submit(sample, payload, in_chunks=False)
        while wait([job.size for job in jobs.jobs], POLL_SECONDS).not_done:
            check()
    return {job.codec: job.size.result() for job in jobs.jobs if not job.has_failed()}


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def missing_codecs(modalities: Iterable[str]) -> dict[str, str]:
    """The command that brings each codec of some modalities which cannot run on this machine."""
    return {
        codec.name: codec.remedy
        for codec in CODECS
        if not is_installed(codec) and any(_is_of(codec, modality) for modality in modalities)
    }


def codec_versions(names: Collection[str]) -> dict[str, str]:
    """Version of the tool or library that computes each of some codecs on this machine."""
    return {codec.name: version_of(codec) for codec in CODECS if codec.name in names}


def with_weights(bits: float, payload_bytes: int, parameters: int) -> dict[str, float]:
    """A model's bits per byte where its weights are sent with the data.

    That is the "adjusted compression rate" of arXiv:2309.10668, which arXiv:2410.05078 takes over,
    times 8: (compressed bytes + weight bytes) / payload bytes, with the weights in fp16.

    Args:
        bits: compressed bits of the payload.
        payload_bytes: bytes that the model is scored on.
        parameters: values of the model.
    Returns:
        `bits_per_byte`, and the `weight_bytes` that were counted.
    """
    weight_bytes = WEIGHT_BYTES * parameters
    return {
        "bits_per_byte": (bits + 8 * weight_bytes) / payload_bytes,
        "weight_bytes": weight_bytes,
    }


@dataclass(frozen=True)
class _Job:
    """One codec that compresses one sample."""

    kind: str
    """`whole` or `chunks`."""
    codec: str
    size: Future[int]

    def has_failed(self) -> bool:
        """Wait for the codec; True where its tool failed. Other errors are raised."""
        error = self.size.exception()
        if error is not None and not isinstance(error, ToolError):
            raise error
        return error is not None


@dataclass(frozen=True)
class _SampleJobs:
    """All codecs that compress one sample."""

    modality: str
    payload_bytes: int
    jobs: list[_Job]

    def add_to(self, sizes: dict[str, CodecSizes]) -> int:
        """Wait for the codecs, add their sizes, and return the sample's payload bytes."""
        for job in self.jobs:
            compressed = None if job.has_failed() else job.size.result()
            sizes[self.modality].add(job.kind, job.codec, compressed, self.payload_bytes)
        return self.payload_bytes


class _Encoders:
    """Threads that run codecs. Leaving the context kills what still runs."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._processes = ToolProcesses()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._processes.kill()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, sample: Sample, payload: Bytes, in_chunks: bool) -> _SampleJobs:
        """Begin to compress a sample with each codec that can, and its chunks if `in_chunks`.

        An empty payload gets no codecs: most formats have no file for it.
        """
        raw, submit = payload.tobytes(), self._pool.submit
        jobs = []
        if raw:
            parts = {"whole": [raw]}
            if in_chunks:
                parts["chunks"] = [raw[i : i + CHUNK] for i in range(0, len(raw), CHUNK)]
            for codec in installed(BYTE_CODECS):
                for kind, files in parts.items():
                    size = submit(_bytes_size, codec, files, self._processes)
                    jobs.append(_Job(kind, codec.name, size))
            for media_codec in installed(MEDIA_CODECS):
                if _can_code(media_codec, sample, payload):
                    size = submit(_media_size, media_codec, sample, self._processes)
                    jobs.append(_Job("whole", media_codec.name, size))
        return _SampleJobs(sample.modality, payload.size, jobs)


def _is_of(codec: Codec, modality: str) -> bool:
    return isinstance(codec, ByteCodec) or codec.modality == modality


def _can_code(codec: MediaCodec, sample: Sample, payload: Bytes) -> bool:
    """Whether a codec's file holds what the payload does: no lossy view, no raw file."""
    is_whole = not sample.is_file and payload.size == len(sample.data)
    return codec.modality == sample.modality and is_whole and codec.fits(sample)


def _bytes_size(codec: ByteCodec, contents: Sequence[bytes], processes: ToolProcesses) -> int:
    """Bytes of all the files that a codec makes of these contents."""
    if codec.tool is not None and uses_tool(codec):
        return sum(codec.tool.sizes(contents, processes))
    return sum(map(codec.library, contents))


def _media_size(codec: MediaCodec, sample: Sample, processes: ToolProcesses) -> int:
    """Bytes of the file that a codec makes of a sample."""
    if codec.tool is not None and codec.tool_input is not None and uses_tool(codec):
        return codec.tool.sizes([codec.tool_input(sample)], processes)[0]
    assert codec.library is not None
    return codec.library(sample)
