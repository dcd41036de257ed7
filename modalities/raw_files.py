"""Raw files: samples that are a file's own bytes, and their only view, `file`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bytelm.modalities.base import FILE_VIEW, Bytes, Header, Sample

RAW_SUFFIX = "bin"
"""Suffix of a raw file's member in a shard."""


def raw_payload(sample: Sample, view: str) -> Bytes | None:
    """The payload [n] of a raw file; None for a decoded sample.

    Raises ValueError for the view `file` of a decoded sample, and any other view of a raw file.
    """
    if sample.is_file and view != FILE_VIEW:
        raise ValueError(
            f"view {view!r} of {sample.modality}: the set holds the files' own bytes; choose the "
            f"view {FILE_VIEW!r}, or prepare the set without --keep-files"
        )
    if not sample.is_file and view == FILE_VIEW:
        raise ValueError(
            f"view {FILE_VIEW!r} of {sample.modality}: the set holds decoded samples; choose "
            "another view, or prepare the set with --keep-files"
        )
    return np.frombuffer(sample.data, np.uint8) if sample.is_file else None


def raw_sample(modality: str, header: Header, data: bytes) -> Sample:
    """A sample of a file's own bytes."""
    return Sample(modality, header, data, is_file=True)


def write_raw(sample: Sample, stem: Path, signatures: Mapping[str, bytes], default: str) -> Path:
    """Write a raw file with the suffix of its kind.

    Args:
        sample: the raw file.
        stem: path without a suffix.
        signatures: regular expressions for the first bytes of a file, by suffix.
        default: suffix where no signature matches.
    Returns:
        The path of the file.
    """
    start = sample.data[:64]
    suffix = next(
        (s for s, pattern in signatures.items() if re.match(pattern, start, re.S)), default
    )
    path = stem.with_name(f"{stem.name}.{suffix}")
    path.write_bytes(sample.data)
    return path
