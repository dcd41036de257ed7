"""Texts that trap their decoder: they make it do what a hostile file could, without such a file."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bytelm.modalities.base import DecodeOptions, Modality, Sample
from bytelm.modalities.image import Image
from bytelm.modalities.text import Text
from bytelm.pipelines.prepare import decode_worker

CPU_SECONDS = 0.3
IMAGE_TRAP = b"IMAGE TRAP"
"""Stands before the words of a trap behind an image."""


@dataclass(frozen=True)
class Trapped(DecodeOptions):
    """Options that set the traps in the worker process that unpickles them."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for modality in (Text, Image):
            _set_trap(modality)
        decode_worker.CPU_SECONDS = CPU_SECONDS
        decode_worker.WALL_FACTOR = 3


def _set_trap(modality: type[Modality]) -> None:
    decode = modality.decode_file

    def trap(self: Modality, file: BinaryIO, options: DecodeOptions) -> Sample:
        _spring(file.read().rpartition(IMAGE_TRAP)[2])
        file.seek(0)
        return decode(self, file, options)

    modality.decode_file = trap  # type: ignore[method-assign]


def _spring(data: bytes) -> None:
    """Do what the first word of a text asks for."""
    match data.split(maxsplit=1):
        case [b"CRASH", *_]:
            os.kill(os.getpid(), signal.SIGSEGV)
        case [b"EXIT", *_]:
            os._exit(3)
        case [b"SPIN", *_]:
            while True:
                pass
        case [b"SLEEP", *_]:
            time.sleep(60)
        case [b"MEMORY", *_]:
            bytearray(2 << 30)
        case [b"RAISE", *_]:
            raise KeyError("what a decoder raises")
        case [b"KILLED_ONCE", name] if _is_first(name):
            os.kill(os.getpid(), signal.SIGKILL)
        case [b"STOPPED_ONCE", name] if _is_first(name):
            time.sleep(60)


def _is_first(name: bytes) -> bool:
    """Whether this is the first call for a path, at which a file is left as a mark."""
    flag = Path(os.fsdecode(name))
    is_first = not flag.exists()
    flag.touch()
    return is_first
