"""What a modality is: a codec between files, canonical samples and payload bytes, and a score.

A *sample* is the canonical form that shards hold: UTF-8 (or any) bytes of a text, 8-bit pixels
in raster order, little-endian 16-bit PCM. A *view* turns a sample into the payload bytes that a
model reads, and back. The *header* is what a decoder has to know before the payload.
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Size = TypeVar("Size", int, npt.NDArray[np.int64])

FILE_VIEW = "file"
FILE_VIEW_CODE = 255


class MediaError(ValueError):
    """A file that cannot become a sample; `reason` is the short name it is counted under."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Header(NamedTuple):
    """What a decoder has to know before the payload; zero where a modality has no such thing."""

    width: int = 0
    """Pixels in a line of an image."""
    height: int = 0
    """Lines of an image."""
    channels: int = 0
    """1 or 3 of an image, 1 to 255 of a sound."""
    rate: int = 0
    """Samples a second of a sound, for each channel."""


@dataclass(frozen=True)
class Sample:
    """One decoded file: its header and its canonical bytes, or the file's own bytes."""

    modality: str
    header: Header
    data: bytes
    is_file: bool = False
    """True where `data` are the file's own bytes, which only the view `file` shows."""


@dataclass(frozen=True)
class Limits:
    """What `prepare` refuses from a file's header, before a pixel or a sample is read."""

    max_bytes: int = 1 << 28
    """Canonical bytes of one sample, and bytes of one source file."""
    max_side: int = 65535
    """Pixels of an image's side; the stream's header holds no more."""


@dataclass(frozen=True)
class ScoredSegment:
    """What a model said of one segment (or the part of it that one row holds)."""

    header: Header
    view: str
    offset: int
    """Where this part of the payload begins, in payload bytes."""
    payload: Bytes
    """[n] the payload bytes."""
    payload_nats: npt.NDArray[np.float64]
    """[n] -log p of each payload byte."""
    frame_nats: npt.NDArray[np.float64]
    """[m] -log p of each other scored id: preamble of a first piece, EOM, EOD."""


class EvaluationHead:
    """Sums over segments, from which a modality's figures follow.

    `nats` are summed in float64 and `counts` in int, and both add up over rows and ranks:
    bits per byte = Σ nats / (ln 2 · Σ payload bytes), never a mean of means.
    """

    def __init__(self) -> None:
        self.nats = {"payload": 0.0, "frame": 0.0}
        self.counts = {"payload_bytes": 0, "segments": 0}

    def update(self, segment: ScoredSegment) -> None:
        """Add one segment, or the part of it that a row holds."""
        self.nats["payload"] += float(segment.payload_nats.sum())
        self.nats["frame"] += float(segment.frame_nats.sum())
        self.counts["payload_bytes"] += segment.payload.size
        self.counts["segments"] += segment.offset == 0

    def metrics(self) -> dict[str, float]:
        """`bits_per_byte` (payload ids over payload bytes) and `coded_bits_per_byte` (every id
        that a decoder needs over payload bytes); NaN where nothing was scored."""
        payload_bits = self.nats["payload"] / math.log(2)
        coded_bits = payload_bits + self.nats["frame"] / math.log(2)
        return {
            "bits_per_byte": self._per(payload_bits, "payload_bytes"),
            "coded_bits_per_byte": self._per(coded_bits, "payload_bytes"),
        }

    def _per(self, bits: float, count: str) -> float:
        return bits / self.counts[count] if self.counts[count] else math.nan


@dataclass(frozen=True)
class DecodeOptions:
    """How `prepare` turns files into samples."""

    limits: Limits = field(default_factory=Limits)
    audio_rate: int | None = None
    """Resample sounds to this many samples a second; None keeps each file's own."""
    audio_channels: int | None = None
    """1 mixes sounds down to mono; None keeps each file's own channels, interleaved."""
    keep_files: bool = False
    """Store the files' own bytes, to be read with the view `file`, and no decoded samples."""


class Modality(ABC):
    """Codec and score of one modality. Instances have no state and are shared."""

    name: ClassVar[str]
    code: ClassVar[int]
    """Its number in a batch's `modality` array."""
    som: ClassVar[int]
    """The id that opens a segment of it."""
    views: ClassVar[tuple[str, ...]]
    """Names of its views beside `file`; the place is the code in the stream's header."""
    plain_views: ClassVar[frozenset[str]]
    """Views whose payload is the stored bytes themselves."""
    header_format: ClassVar[str]
    """`struct` format of the header's fields that stand before view and offset."""
    header_fields: ClassVar[tuple[str, ...]]
    """The fields of `Header` in that order."""
    head: ClassVar[type[EvaluationHead]]
    suffixes: ClassVar[tuple[str, ...]]
    """Of the files that `write` can write, the usual one first."""

    # --- files and samples ---

    @abstractmethod
    def recognises(self, start: bytes) -> bool:
        """Whether a file that begins with `start` (its first 4,096 bytes) is of this modality."""

    @abstractmethod
    def decode(self, file: BinaryIO, options: DecodeOptions) -> Sample:
        """The canonical sample in an open, seekable file (or its own bytes, if `keep_files`).

        Raises MediaError for what is broken, too large, or not allowed.
        """

    @abstractmethod
    def member_suffix(self, sample: Sample) -> str:
        """The suffix of the sample's member in a shard, without a dot; `bin` for kept files."""

    @abstractmethod
    def write(self, sample: Sample, stem: Path, suffix: str | None = None) -> Path:
        """Write a sample as a file that people open, of one of `suffixes`, or of the first.

        A kept file is written as it is, with the suffix of its kind. Returns the path.
        """

    # --- samples and payloads ---

    @abstractmethod
    def payload_size(self, size: Size, view: str) -> Size:
        """Payload bytes of a canonical sample of `size` bytes, or of each of an array of them."""

    @abstractmethod
    def to_view(self, sample: Sample, view: str, patch: int) -> Bytes:
        """The payload [n] of a sample under a view; `patch` is what a tile of `patch` fills."""

    @abstractmethod
    def from_view(self, header: Header, payload: Bytes, view: str, patch: int) -> Sample:
        """The sample of a whole payload; the inverse of `to_view`, but for `u8` and `mulaw`."""

    def stored_range(self, view: str, start: int, stop: int) -> tuple[int, int, int] | None:
        """The stored bytes [a, b) whose view holds payload bytes [start, stop), and the number
        of payload bytes before `start` in it; None where a part needs the whole sample."""
        return (start, stop, 0) if view in self.plain_views or view == FILE_VIEW else None

    # --- headers in the stream ---

    def view_code(self, view: str) -> int:
        """The view's number in the stream's header; ValueError for a view it does not have."""
        if view == FILE_VIEW:
            return FILE_VIEW_CODE
        if view not in self.views:
            known = ", ".join((*self.views, FILE_VIEW))
            raise ValueError(f"{self.name} has no view {view!r}; choose one of {known}")
        return self.views.index(view)

    def check_view(self, view: str, channels: int, patch: int) -> None:  # noqa: B027
        """ValueError where a sample of so many channels has no such view at this patch."""

    @property
    def header_size(self) -> int:
        """Bytes of the stream's header: the modality's fields, view u8, payload offset u32."""
        return struct.calcsize(self.header_format + "BI")

    def pack_header(self, header: Header, view: str, offset: int) -> bytes:
        """The stream's header, big-endian, of a piece whose payload begins at byte `offset`."""
        fields = [getattr(header, name) for name in self.header_fields]
        return struct.pack(self.header_format + "BI", *fields, self.view_code(view), offset)

    def pack_headers(
        self, fields: Mapping[str, npt.NDArray[np.integer]], codes: Bytes, offsets: npt.ArrayLike
    ) -> Bytes:
        """[n, header_size] the stream's headers of n segments.

        Args:
            fields: of each name in `header_fields`, [n] values.
            codes: [n] view codes.
            offsets: [n] payload offsets.
        """
        kinds = {"B": "u1", "H": ">u2", "I": ">u4"}
        names = (*self.header_fields, "view", "offset")
        letters = self.header_format.lstrip(">") + "BI"
        dtype = np.dtype([(n, kinds[k]) for n, k in zip(names, letters, strict=True)])
        packed = np.empty(len(codes), dtype)
        for name in self.header_fields:
            packed[name] = fields[name]
        packed["view"], packed["offset"] = codes, offsets
        return packed.view(np.uint8).reshape(len(codes), self.header_size)

    def unpack_header(self, packed: bytes) -> tuple[Header, str, int]:
        """Header, view and payload offset; ValueError for a view code that means nothing."""
        *fields, code, offset = struct.unpack(self.header_format + "BI", packed)
        header = Header(**dict(zip(self.header_fields, fields, strict=True)))
        if code == FILE_VIEW_CODE:
            return header, FILE_VIEW, offset
        if code >= len(self.views):
            raise ValueError(f"{self.name} has no view of code {code}")
        return header, self.views[code], offset
