"""A made-up evaluation, for what prints and keeps one."""

from __future__ import annotations

from typing import Any

from bytelm.pipelines.evaluation.records import Evaluation

ABOUT = {
    "model": "runs/first",
    "step": 100,
    "parameters": 7_149_704,
    "split": "val",
    "scoring": "plain",
    "precision": "fp32",
    "limit": None,
    "batch": 1,
    "documents": 2,
    "documents_in_split": 2,
    "sets": [{"path": "sets/images", "root": "0" * 64}],
    "version": "0.1.0",
    "date": "2026-01-01T00:00:00+00:00",
}
FIGURES = {"bits_per_byte": 1.234, "coded_bits_per_byte": 1.235, "payload_bytes": 123_456_789}


def made_up_evaluation(about: dict[str, Any] | None = None, **values: Any) -> Evaluation:
    """An evaluation of two images; `about` replaces some facts, `values` some fields."""
    document = {
        "set": "sets/images",
        "modality": "image",
        "bytes": 61_728_394,
        "bits": 76_172_838.0,
    }
    fields: dict[str, Any] = {
        "about": {**ABOUT, **(about or {})},
        "model": {"image": dict(FIGURES), "total": dict(FIGURES)},
        "intervals": {"image": {"bits_per_byte": [1.111, 1.357]}},
        "maps": {},
        "codecs": {"image": {"gzip": 2.001, "PNG": 2.003, "JPEG XL e9": 2.005}},
        "codec_chunks": {"image": {"gzip": 2.468}},
        "codecs_missing": {"WavPack": "apt-get install wavpack"},
        "codec_versions": {"JPEG XL e7": "cjxl 0.7.0", "JPEG XL e9": "cjxl 0.7.0"},
        "with_weights": {"image": {"bits_per_byte": 2.161, "weight_bytes": 14_299_408}},
        "pairs": {},
        "documents": [{"key": key, **document, "coded_bits": 76_200_000.0} for key in "ab"],
    }
    return Evaluation(**{**fields, **values})
