"""Samples in the files that a user gives."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, MediaError, Sample
from bytelm.modalities.detect import START_BYTES, modality_of

Source = str | os.PathLike[str] | bytes
"""The path of a file, or the bytes of one."""


def detect_modality(source: Source) -> str | None:
    """The modality that a file's first bytes show, or None. ValueError if it cannot be read."""
    with _opened(source) as file:
        return modality_of(file.read(START_BYTES))


def read_sample(modality: str, source: Source, options: DecodeOptions) -> Sample:
    """Decode the sample in a file. ValueError if it cannot be read as that modality."""
    try:
        with _opened(source) as file:
            return MODALITIES[modality].decode_file(file, options)
    except MediaError as error:
        raise ValueError(f"{source_name(source)} is no {modality} ({error})") from error


def read_bytes(source: Source) -> bytes:
    """The bytes of a file. ValueError if it cannot be read."""
    with _opened(source) as file:
        return file.read()


def source_name(source: Source) -> str:
    """The name of a source in messages."""
    return f"a file of {len(source):,} bytes" if isinstance(source, bytes) else str(source)


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            yield file
    except OSError as error:
        raise ValueError(f"cannot read {source_name(source)}: {error.strerror}") from error
