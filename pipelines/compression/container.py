"""The container of compressed files: what decodes it, what it holds, and the range coder's words.

    "BLM", format u8, 16 bytes of the model's SHA-256, length u32 of the description,
    description (deflated JSON), words u32 of the range coder, CRC-32 of everything before it

All numbers are big-endian. A container of a model that mixes its outputs has format 6, one of
documents that the model learned from while it coded them format 5, one of several streams of words
(`coding`) format 3, one whose names have folders (`a/b.txt`) format 2, another one format 1. Format
4 was that of mixing that began anew in each piece, and is read no more.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.model.adaptation import Adaptation
from bytelm.pipelines.errors import DamageError

MAGIC = b"BLM"
FLAT_FORMAT = 1
FOLDER_FORMAT = 2
STREAMS_FORMAT = 3
EARLIER_BITS_FORMAT = 4
ADAPTED_FORMAT = 5
BITS_FORMAT = 6
MAX_NAME_BYTES = 255
"""Limit of file systems for a name in a folder."""
MAX_PATH_BYTES = 3000
"""Leaves room for the folder that files are restored to: the system takes 4,095 bytes in all."""
HASH_BYTES = 16
MAX_DESCRIPTION_BYTES = 1 << 28
MAX_PAYLOAD_BYTES = (1 << 32) - 1
"""Limit of the 32-bit payload offset in a piece's header."""
MAX_THREADS = 4096
MAX_WINDOW = 1 << 32

_FIXED = struct.Struct(f">3sB{HASH_BYTES}sI")
_CRC = struct.Struct(">I")

Words = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class ContainerEntry:
    """A file's name, size and checksum in a container; ValueError for impossible values."""

    name: str
    """Name of the restored file, with folders before it; `name_problem` says if it can be one."""
    size: int
    """Payload bytes."""
    crc: int
    """CRC-32 of the sample: pixels, PCM, or the file's own bytes."""

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_PAYLOAD_BYTES:
            raise ValueError(
                f"{self.name} has {self.size:,} bytes, and may have {MAX_PAYLOAD_BYTES:,}"
            )


@dataclass(frozen=True)
class Container:
    """The content of a container; ValueError for impossible values."""

    model: bytes
    """The first HASH_BYTES of the SHA-256 of the model that coded."""
    build: str
    """Versions and machine that computed the probabilities."""
    threads: int
    """Processor threads that computed them."""
    batch: int
    """Most rows that step together."""
    entries: tuple[ContainerEntry, ...]
    words: Words
    """The range coder's output, one stream behind the other."""
    first_streams: tuple[int, ...] = ()
    """Words of each stream but the last, which has the rest."""
    is_mixed: bool = False
    """Whether the words are those of binary decisions under mixed outputs."""
    adaptation: Adaptation | None = None
    """Settings by which the model learned from each document while it coded it."""

    @property
    def streams(self) -> list[Words]:
        """The words of each stream."""
        return np.split(self.words, np.cumsum(self.first_streams, dtype=np.int64))

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS or self.batch < 1:
            raise ValueError(f"{self.threads} threads and batches of {self.batch}")
        if len({entry.name for entry in self.entries}) < len(self.entries):
            raise ValueError("two files of one name")
        if min(self.first_streams, default=0) < 0 or sum(self.first_streams) > len(self.words):
            raise ValueError(f"streams of {self.first_streams} words among {len(self.words)}")


def name_problem(name: str) -> str | None:
    """Why no file can be restored under a name; None for one that can."""
    parts = name.split("/")
    try:
        sizes = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        return "is no name for a file"
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        return "is no name for a file"
    if max(sizes) > MAX_NAME_BYTES:
        return f"has a name of {max(sizes)} bytes, and file systems take {MAX_NAME_BYTES}"
    if sum(sizes) + len(sizes) > MAX_PATH_BYTES:
        return f"has {sum(sizes) + len(sizes)} bytes, and may have {MAX_PATH_BYTES:,}"
    return None


def pack(container: Container) -> bytes:
    """Serialize a container."""
    description: dict[str, Any] = {
        "build": container.build,
        "threads": container.threads,
        "batch": container.batch,
        "files": [[entry.name, entry.size, entry.crc] for entry in container.entries],
    }
    has_folders = any("/" in entry.name for entry in container.entries)
    version = FOLDER_FORMAT if has_folders else FLAT_FORMAT
    if container.first_streams:
        version, description["first_streams"] = STREAMS_FORMAT, container.first_streams
    if container.is_mixed:
        version = BITS_FORMAT
    if container.adaptation is not None:
        version, description["is_mixed"] = ADAPTED_FORMAT, container.is_mixed
        description["adaptation"] = asdict(container.adaptation)
    deflated = zlib.compress(json.dumps(description, separators=(",", ":")).encode(), 9)
    fixed = _FIXED.pack(MAGIC, version, container.model, len(deflated))
    packed = fixed + deflated + container.words.astype(">u4").tobytes()
    return packed + _CRC.pack(zlib.crc32(packed))


def unpack(packed: bytes, where: str) -> Container:
    """Parse a container; errors call it `where`.

    Raises ValueError for another kind of file or another format, and DamageError for damage.
    """
    if packed[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{where} is no file that `bytelm compress` made")
    content, crc = packed[: -_CRC.size], packed[-_CRC.size :]
    if len(content) < _FIXED.size or _CRC.pack(zlib.crc32(content)) != crc:
        raise DamageError(f"{where} is damaged or cut: its checksum is wrong")
    _, version, model, size = _FIXED.unpack_from(content)
    if version == EARLIER_BITS_FORMAT:
        raise ValueError(
            f"{where} was compressed by an earlier way of mixing: use the bytelm that made it"
        )
    if not FLAT_FORMAT <= version <= BITS_FORMAT:
        raise ValueError(
            f"{where} has format {version}, this bytelm reads {FLAT_FORMAT} to {BITS_FORMAT}: "
            "use the one that made it"
        )
    deflated, words = content[_FIXED.size :][:size], content[_FIXED.size + size :]
    try:
        text = zlib.decompressobj().decompress(deflated, MAX_DESCRIPTION_BYTES)
        description: dict[str, Any] = json.loads(text)
        return Container(
            model=model,
            build=str(description["build"]),
            threads=int(description["threads"]),
            batch=int(description["batch"]),
            entries=tuple(
                ContainerEntry(str(name), int(size), int(crc))
                for name, size, crc in description["files"]
            ),
            words=np.frombuffer(words, ">u4").astype(np.uint32),
            first_streams=tuple(map(int, description.get("first_streams", ()))),
            is_mixed=bool(description.get("is_mixed", version == BITS_FORMAT)),
            adaptation=_adaptation(description.get("adaptation")),
        )
    except (ValueError, TypeError, KeyError, zlib.error) as error:
        raise DamageError(f"{where} is damaged: its description is none ({error})") from error


def _adaptation(stored: dict[str, Any] | None) -> Adaptation | None:
    """The settings of learning in a description; ValueError for impossible ones."""
    if stored is None:
        return None
    rate, window, step = float(stored["rate"]), int(stored["window"]), int(stored["step"])
    if not (0.0 < rate <= 1.0 and 0 < step <= window <= MAX_WINDOW):
        raise ValueError(f"learning at the rate {rate} from {step} ids in windows of {window}")
    return Adaptation(rate, window, step, str(stored["preset"]))
