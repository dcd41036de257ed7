"""The interface of a modality: a codec between files, samples and payloads, and a score.

    file  -- decode_file -->  sample  -- to_view -->    payload
    file  <-- write_file --   sample  <-- from_view --  payload

A *sample* is the canonical form that shards hold: UTF-8 (or any) bytes of a text, 8-bit pixels
in raster order, little-endian 16-bit PCM; a *deep* sample has 16-bit pixels or 24-bit PCM,
big-endian; a raw file is a file's own bytes. A *view* is a way to read a sample as the payload
bytes that a model sees. The *header* holds what a decoder must know
before the payload.

    n payload bytes
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from bytelm.modalities.evaluation_head import EvaluationHead

Bytes = npt.NDArray[np.uint8]
Size = TypeVar("Size", int, npt.NDArray[np.int64])

FILE_VIEW = "file"
"""The view of raw files."""
FILE_VIEW_CODE = 255


class MediaError(ValueError):
    """A file that cannot become a sample; reports count such files by `reason`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Header(NamedTuple):
    """Facts that a decoder must know before the payload; fields that a modality lacks are 0."""

    width: int = 0
    """Pixels in a line of an image."""
    height: int = 0
    """Lines of an image."""
    channels: int = 0
    """Channels: 1 or 3 of an image, 1 to 255 of a sound."""
    rate: int = 0
    """Samples a second in each channel of a sound."""


@dataclass(frozen=True)
class Sample:
    """A file as shards hold it: its header, and its canonical bytes or the file's own bytes."""

    modality: str
    header: Header
    data: bytes
    is_file: bool = False
    """Whether `data` are the file's own bytes, which only the view `file` reads."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Changes that decoding made, in words that reports count: "converted from UTF-16"."""
    is_deep: bool = False
    """Whether `data` are 16-bit values of pixels, or 24-bit samples of a sound."""


@dataclass(frozen=True)
class Limits:
    """Sizes above which a file is refused by its header, before a pixel or a sample is read."""

    max_bytes: int = 1 << 28
    """Canonical bytes of one sample, and bytes of one source file."""
    max_side: int = 65535
    """Pixels of an image's side, as many as the stream's header can hold."""


@dataclass(frozen=True)
class DecodeOptions:
    """How files become samples."""

    limits: Limits = field(default_factory=Limits)
    audio_rate: int | None = None
    """Resample sounds to this many samples a second; None keeps the rate of each file."""
    audio_channels: int | None = None
    """1 mixes sounds down to mono; None keeps the channels of each file, interleaved."""
    keep_files: bool = False
    """Make samples of the files' own bytes, to be read with the view `file`."""
    keep_depth: bool = False
    """Make deep samples of images of more than 8 bits and sounds of more than 16; otherwise the
    low bits are dropped."""


class Modality(ABC):
    """Codec and score of one modality. Instances have no state and are shared."""

    name: ClassVar[str]
    code: ClassVar[int]
    """Its number in shards' indices and in a batch's `modality`."""
    som: ClassVar[int]
    """The id that opens a segment (start of modality)."""
    views: ClassVar[tuple[str, ...]]
    """Names of its views beside `file`, in the order of their codes in the stream's header."""
    plain_views: ClassVar[tuple[str, str]]
    """The view whose payload is the stored bytes themselves, of usual and of deep samples."""
    whole_views: ClassVar[frozenset[str]] = frozenset()
    """Views in which a part of the payload needs the whole sample."""
    value_bytes: ClassVar[tuple[int, int]]
    """Stored bytes of one value (a channel of a pixel, a sample of a channel), usual and deep."""
    view_value_bytes: ClassVar[Mapping[str, int]]
    """Payload bytes of one value, by view."""
    header_format: ClassVar[str]
    """`struct` format of the header's fields; view and offset follow them in the stream."""
    header_fields: ClassVar[tuple[str, ...]]
    """The names in `Header` of those fields."""
    head: ClassVar[type[EvaluationHead]]
    """The score of the modality."""
    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of the files that `write_file` writes, the usual one first."""

    # --- files and samples ---

    @abstractmethod
    def recognises(self, start: bytes) -> bool:
        """Whether a file that begins with `start` (its first 4,096 bytes) is of this modality."""

    @abstractmethod
    def decode_file(self, file: BinaryIO, options: DecodeOptions) -> Sample:
        """Decode an open, seekable file to its canonical sample.

        With `keep_files` the file is checked in the same way, and the sample has its own bytes.

        Raises:
            MediaError: the file is broken, too large or of a kind that is not allowed.
        """

    @abstractmethod
    def member_suffix(self, sample: Sample) -> str:
        """The suffix of the sample's member in a shard, without a dot; `bin` for raw files."""

    @abstractmethod
    def write_file(self, sample: Sample, stem: Path, suffix: str | None = None) -> Path:
        """Write a sample as a file that common programs open.

        Args:
            sample: the sample; a raw file is written as it is, with the suffix of its kind.
            stem: path without a suffix.
            suffix: one of `suffixes`, the first of them by default.
        Returns:
            The path of the file.
        """

    # --- samples and payloads ---

    def payload_size(
        self, size: Size, view: str, is_deep: bool | npt.NDArray[np.bool_] = False
    ) -> Size:
        """Payload bytes under a view of a sample of `size` bytes, or of an array of such sizes."""
        self.view_code(view)
        if view == FILE_VIEW:
            return size
        usual, deep = self.value_bytes
        values = size // (usual + (deep - usual) * is_deep)
        return cast(Size, values * self.view_value_bytes[view])

    @abstractmethod
    def to_view(self, sample: Sample, view: str, patch: int) -> Bytes:
        """The payload [n] of a sample under a view.

        patch: P, the bytes of a tile in the view `patch` of images; other views ignore it.
        Raises ValueError for a view that the sample does not have.
        """

    @abstractmethod
    def from_view(self, header: Header, payload: Bytes, view: str, patch: int) -> Sample:
        """The sample of a whole payload: the inverse of `to_view`.

        Views with fewer bits than the sample lose precision, so their samples differ.
        Raises ValueError for a payload that the header does not fit.
        """

    def options_for(self, view: str) -> DecodeOptions:
        """Options that decode files to samples which have the view, with all the bits it shows."""
        is_deep = self.view_value_bytes.get(view, 0) > self.value_bytes[False]
        return DecodeOptions(keep_files=view == FILE_VIEW, keep_depth=is_deep)

    def is_plain(self, view: str, is_deep: bool) -> bool:
        """Whether the payload under a view is the sample's stored bytes themselves."""
        return view in (self.plain_views[is_deep], FILE_VIEW)

    def stored_range(
        self, view: str, start: int, stop: int, is_deep: bool = False
    ) -> tuple[int, int, int] | None:
        """The part of a sample's bytes that payload bytes [start, stop) come from.

        Returns the bounds of the part and the number of bytes in its payload before `start`; None
        where a part of the payload needs the whole sample.
        """
        if self.is_plain(view, is_deep):
            return start, stop, 0
        if view in self.whole_views:
            return None
        width, stored = self.view_value_bytes[view], self.value_bytes[is_deep]
        first, last = start // width, -(-stop // width)
        return first * stored, last * stored, start - first * width

    # --- headers in the stream ---

    def view_code(self, view: str) -> int:
        """The code of a view in the stream's header; ValueError for an unknown view."""
        if view == FILE_VIEW:
            return FILE_VIEW_CODE
        if view not in self.views:
            known = ", ".join((*self.views, FILE_VIEW))
            raise ValueError(f"{self.name} has no view {view!r}; choose one of {known}")
        return self.views.index(view)

    def check_view(self, view: str, channels: int, patch: int) -> None:  # noqa: B027
        """Raise ValueError where samples of `channels` channels lack the view at this patch."""

    @property
    def header_size(self) -> int:
        """Bytes of a header in the stream: the modality's fields, view u8, payload offset u32."""
        return struct.calcsize(self.header_format + "BI")

    def pack_header(self, header: Header, view: str, offset: int) -> bytes:
        """The header in the stream, big-endian, of a piece that begins at payload byte `offset`."""
        fields = [getattr(header, name) for name in self.header_fields]
        return struct.pack(self.header_format + "BI", *fields, self.view_code(view), offset)

    def pack_headers(
        self, fields: Mapping[str, npt.NDArray[np.integer]], codes: Bytes, offsets: npt.ArrayLike
    ) -> Bytes:
        """`pack_header` of many segments at once.

        Args:
            fields: [segments] values by name, for each of `header_fields`.
            codes: [segments] view codes.
            offsets: [segments] payload offsets.
        Returns:
            [segments, header_size].
        """
        types = {"B": "u1", "H": ">u2", "I": ">u4"}
        names = (*self.header_fields, "view", "offset")
        letters = self.header_format.lstrip(">") + "BI"
        dtype = np.dtype([(n, types[k]) for n, k in zip(names, letters, strict=True)])
        packed = np.empty(len(codes), dtype)
        for name in self.header_fields:
            packed[name] = fields[name]
        packed["view"], packed["offset"] = codes, offsets
        return packed.view(np.uint8).reshape(len(codes), self.header_size)

    def unpack_header(self, packed: bytes) -> tuple[Header, str, int]:
        """Header, view and payload offset; ValueError for an unknown view code."""
        *fields, code, offset = struct.unpack(self.header_format + "BI", packed)
        header = Header(**dict(zip(self.header_fields, fields, strict=True)))
        if code == FILE_VIEW_CODE:
            return header, FILE_VIEW, offset
        if code >= len(self.views):
            raise ValueError(f"{self.name} has no view of code {code}")
        return header, self.views[code], offset
