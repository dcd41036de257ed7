"""Files as documents of one segment, and back.

Images and sounds become decoded samples in the model's views. Texts, unknown kinds, and files that
a view does not preserve exactly are kept byte for byte.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import FILE_VIEW, Bytes, Header, Modality, Sample
from bytelm.modalities.detect import START_BYTES, modality_of
from bytelm.modalities.framing import Segment
from bytelm.pipelines.compression.container import ContainerEntry


@dataclass(frozen=True)
class Document:
    """A file as a document of one segment."""

    entry: ContainerEntry
    segment: Segment
    payload: Bytes
    """[segment.size]; coding writes it in place."""


def encode_file(
    name: str, data: bytes, views: Mapping[str, str], keep_files: bool, patch: int
) -> Document:
    """The document of a file.

    Args:
        name: the file's own name, without folders.
        views: the model's view of each modality.
        keep_files: keep images and sounds byte for byte too, in the view `file`.
        patch: P.
    Raises:
        ValueError: for a name that no file can have, and a payload too large for a container.
    """
    kind = MODALITIES[modality_of(data[:START_BYTES]) or "text"]
    view = FILE_VIEW if keep_files else views[kind.name]
    sample = None if kind.name == "text" else _exact_sample(kind, data, view, patch)
    if sample is None:
        kind, view = MODALITIES["text"], views["text"]
        sample = Sample("text", Header(), data, is_file=view == FILE_VIEW)
    payload = np.array(kind.to_view(sample, view, patch))
    segment = Segment(kind, sample.header, view, payload.size)
    entry = ContainerEntry(restored_name(name, segment), payload.size, zlib.crc32(sample.data))
    return Document(entry, segment, payload)


def _exact_sample(modality: Modality, data: bytes, view: str, patch: int) -> Sample | None:
    """The sample in an image or sound file; None if decoding or the view loses something of it."""
    try:
        sample = modality.decode_file(io.BytesIO(data), modality.options_for(view))
        if sample.notes:
            return None
        payload = modality.to_view(sample, view, patch)
        is_exact = modality.from_view(sample.header, payload, view, patch) == sample
    except ValueError:  # a broken file, or one that has no such view
        return None
    return sample if is_exact else None


def decode_sample(document: Document, patch: int) -> Sample:
    """The sample of a document; ValueError if its checksum or its name is wrong."""
    entry, segment = document.entry, document.segment
    sample = segment.modality.from_view(segment.header, document.payload, segment.view, patch)
    if zlib.crc32(sample.data) != entry.crc:
        raise ValueError(f"the checksum of {entry.name} is wrong")
    if restored_name(entry.name, segment) != entry.name:
        raise ValueError(f"{entry.name} is no name of a restored {segment.modality.name}")
    return sample


def restored_name(name: str, segment: Segment) -> str:
    """The name of a restored file: its own, or for decoded samples one with their format's suffix.

    A restored name is its own restored name.
    """
    suffixes = segment.modality.suffixes
    if segment.modality.name == "text" or segment.view == FILE_VIEW:
        return name
    stem, _, suffix = name.rpartition(".")
    if stem and suffix.lower() in suffixes:
        return f"{stem}.{suffix.lower()}"
    return f"{name}.{suffixes[0]}"


def file_content(sample: Sample, name: str) -> bytes:
    """The content of a restored file, in the format of its name's suffix.

    Raises ValueError for a sound that FLAC cannot hold.
    """
    if sample.modality == "text" or sample.is_file:
        return sample.data
    suffix = name.rpartition(".")[2]
    with TemporaryDirectory() as folder:
        path = MODALITIES[sample.modality].write_file(sample, Path(folder) / "restored", suffix)
        return path.read_bytes()
