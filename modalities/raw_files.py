"""Kept files: samples that are a file's own bytes, and their only view, `file`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bytelm.modalities.base import FILE_VIEW, Bytes, Header, Sample

KEPT_SUFFIX = "bin"
"""Suffix of a kept file's member in a shard."""


def kept_payload(sample: Sample, view: str) -> Bytes | None:
    """The payload [n] of a kept file, None for a decoded sample.

    Raises ValueError for the view `file` of a decoded sample, and any other view of a kept file.
    """
    if sample.is_file and view != FILE_VIEW:
        raise ValueError(
            f"view {view!r} of {sample.modality}: the set holds the files' own bytes; choose the "
            f"view {FILE_VIEW!r}, or prepare the set without keeping files"
        )
    if not sample.is_file and view == FILE_VIEW:
        raise ValueError(
            f"view {FILE_VIEW!r} of {sample.modality}: the set holds decoded samples; choose "
            "another view, or prepare the set with the files kept"
        )
    return np.frombuffer(sample.data, np.uint8) if sample.is_file else None


def kept_sample(modality: str, header: Header, data: bytes) -> Sample:
    """A sample of a file's own bytes."""
    return Sample(modality, header, data, is_file=True)


def write_kept(sample: Sample, stem: Path, signatures: Mapping[str, bytes], default: str) -> Path:
    """Write a kept file under the suffix whose signature (a regular expression) its bytes match.

    Returns the path.
    """
    start = sample.data[:64]
    suffix = next(
        (s for s, pattern in signatures.items() if re.match(pattern, start, re.S)), default
    )
    path = stem.with_name(f"{stem.name}.{suffix}")
    path.write_bytes(sample.data)
    return path
