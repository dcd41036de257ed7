"""What a model has seen of each modality: the view, the headers, and pairs of segments.

It is kept in the exported model's config:

    {"views": {"image": "raster", ...},
     "seen": {"headers": {"image": [[64, 64, 3], ...], "audio": [[16000, 1]]},
              "pairs": [["text", "image"]]}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bytelm.modalities import BY_CODE, MODALITIES
from bytelm.modalities.base import Header
from bytelm.pipelines.data.plan import Plan

MAX_SHARDS = 64
"""Of each set that are looked at; documents are in random order, so the first tell enough."""
MAX_HEADERS = 1024
"""Of each modality that are kept, the most frequent."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a model was trained on, as far as the first shards of its sets tell."""

    views: Mapping[str, str]
    """The view of each modality."""
    headers: Mapping[str, Sequence[Header]]
    """The most frequent headers of each modality, most frequent first."""
    pairs: frozenset[tuple[str, str]]
    """Modalities of segments that followed one another in a document."""

    @classmethod
    def of(cls, plan: Plan) -> DatasetInfo:
        """From the indexes of a plan's sources."""
        headers: Counter[tuple[int, ...]] = Counter()  # modality's code and its header's fields
        pairs: set[tuple[str, str]] = set()
        for source in plan.sources:
            for shard in source.set.split(source.split)[:MAX_SHARDS]:
                index = source.set.index(shard)
                for modality in BY_CODE:
                    own = index[index["modality"] == modality.code]
                    fields = [own[name].astype(np.int64) for name in modality.header_fields]
                    if len(own) and fields:
                        found, counts = np.unique(np.stack(fields, 1), axis=0, return_counts=True)
                        for values, count in zip(found.tolist(), counts.tolist(), strict=True):
                            headers[modality.code, *values] += count
                follows = np.flatnonzero(index["document"][1:] == index["document"][:-1])
                codes = np.stack([index["modality"][follows], index["modality"][follows + 1]], 1)
                for first, second in np.unique(codes, axis=0).tolist():
                    names = BY_CODE[first].name, BY_CODE[second].name
                    pairs.add(names)
                    if plan.config.pair_order == "drawn":
                        pairs.add(names[::-1])
        by_modality: dict[str, list[Header]] = {}
        for (code, *values), _ in headers.most_common():
            modality = BY_CODE[code]
            header = Header(**dict(zip(modality.header_fields, values, strict=True)))
            by_modality.setdefault(modality.name, []).append(header)
        kept = {name: found[:MAX_HEADERS] for name, found in by_modality.items()}
        return cls(plan.config.views, kept, frozenset(pairs))

    def to_extra(self) -> dict[str, Any]:
        """As the exported model's config holds it."""
        headers = {
            name: [[getattr(h, field) for field in MODALITIES[name].header_fields] for h in headers]
            for name, headers in self.headers.items()
        }
        seen = {"headers": headers, "pairs": sorted(map(list, self.pairs))}
        return {"views": dict(self.views), "seen": seen}

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> DatasetInfo:
        """The inverse of `to_extra`; of a config without `seen`, nothing but the views."""
        values = extra.get("seen", {"headers": {}, "pairs": []})
        headers = {
            name: [
                Header(**dict(zip(MODALITIES[name].header_fields, fields, strict=True)))
                for fields in found
            ]
            for name, found in values["headers"].items()
        }
        pairs = frozenset((first, second) for first, second in values["pairs"])
        return cls(extra["views"], headers, pairs)
