"""Facts about a model's training set: views, headers, pairs of segments, and settings of sampling.

The exported model's config holds it:

    {"views": {"image": "raster", ...},
     "seen": {"modalities": ["audio", "image", "text"],
              "headers": {"image": [[64, 64, 3], ...], "audio": [[16000, 1]]},
              "pairs": [["text", "image"]]},
     "sampling": {"image": {"new": {"temperature": 0.95, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
                            "finished": {...}}}}

Only models that `bytelm calibrate` has measured have `sampling`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bytelm.modalities import BY_CODE, MODALITIES
from bytelm.modalities.base import Header
from bytelm.pipelines.data.plan import Plan
from bytelm.pipelines.shards.format import Index

NEW, FINISHED = "new", "finished"
"""Payloads that are drawn from their first byte on, and those that go on from a prompt."""
MAX_SHARDS = 64
"""Shards of each set that are read; documents are in random order, so the first ones suffice."""
MAX_HEADERS = 1024
"""Most frequent headers of each modality that are kept."""


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a training set, from the first shards of its sets."""

    views: Mapping[str, str]
    """The view of each modality."""
    headers: Mapping[str, Sequence[Header]]
    """The most frequent headers of each modality, most frequent first."""
    pairs: frozenset[tuple[str, str]]
    """Modalities of segments that followed one another in a document."""
    modalities: frozenset[str]
    """Modalities of all segments."""
    sampling: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Settings of sampling with which draws cost what such data cost, by modality and by NEW or
    FINISHED; empty where nobody has measured them."""

    @classmethod
    def of(cls, plan: Plan) -> DatasetInfo:
        """Collect the info from the indexes of a plan's sources."""
        counts: Counter[tuple[str, Header]] = Counter()
        pairs: set[tuple[str, str]] = set()
        codes: set[int] = set()
        for source in plan.sources:
            for shard in source.set.split(source.split)[:MAX_SHARDS]:
                index = source.set.index(shard)
                counts.update(_count_headers(index))
                pairs.update(_adjacent_modalities(index))
                codes.update(np.unique(index["modality"]).tolist())
        if plan.config.pair_order == "drawn":
            pairs |= {(second, first) for first, second in pairs}
        headers: dict[str, list[Header]] = {}
        for (modality, header), _ in counts.most_common():
            headers.setdefault(modality, []).append(header)
        most_frequent = {name: values[:MAX_HEADERS] for name, values in headers.items()}
        modalities = frozenset(BY_CODE[code].name for code in codes)
        return cls(plan.config.views, most_frequent, frozenset(pairs), modalities)

    def to_extra(self) -> dict[str, Any]:
        """The info as entries of the exported model's config."""
        headers = {
            name: [[getattr(h, field) for field in MODALITIES[name].header_fields] for h in headers]
            for name, headers in self.headers.items()
        }
        seen = {
            "modalities": sorted(self.modalities),
            "headers": headers,
            "pairs": sorted(map(list, self.pairs)),
        }
        extra = {"views": dict(self.views), "seen": seen}
        return {**extra, "sampling": dict(self.sampling)} if self.sampling else extra

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> DatasetInfo:
        """The inverse of `to_extra`.

        A config without `seen` gives every modality with a view. One of an earlier version, without
        `modalities`, gives those with headers, and text, which has none.
        """
        nothing = {"modalities": extra["views"], "headers": {}, "pairs": []}
        seen = extra.get("seen", nothing)
        headers = {
            name: [_header(MODALITIES[name].header_fields, values) for values in rows]
            for name, rows in seen["headers"].items()
        }
        pairs = frozenset((first, second) for first, second in seen["pairs"])
        modalities = frozenset(seen.get("modalities", [*headers, "text"]))
        return cls(extra["views"], headers, pairs, modalities, extra.get("sampling", {}))


def _header(fields: Sequence[str], values: Sequence[int]) -> Header:
    return Header(**dict(zip(fields, values, strict=True)))


def _count_headers(index: Index) -> Counter[tuple[str, Header]]:
    """How often each (modality, header) occurs in an index."""
    counts: Counter[tuple[str, Header]] = Counter()
    for modality in MODALITIES.values():
        rows = index[index["modality"] == modality.code]
        columns = [rows[name].astype(np.int64) for name in modality.header_fields]
        if len(rows) and columns:
            values, repeats = np.unique(np.stack(columns, 1), axis=0, return_counts=True)
            for value, count in zip(values.tolist(), repeats.tolist(), strict=True):
                counts[modality.name, _header(modality.header_fields, value)] = count
    return counts


def _adjacent_modalities(index: Index) -> Iterator[tuple[str, str]]:
    """The modalities of each kind of two adjacent segments of a document."""
    first = np.flatnonzero(index["document"][1:] == index["document"][:-1])
    codes = np.stack([index["modality"][first], index["modality"][first + 1]], 1)
    for code, next_code in np.unique(codes, axis=0).tolist():
        yield BY_CODE[code].name, BY_CODE[next_code].name
