"""Differences of runs: bits per byte on the documents that both scored, with paired intervals.

The interval of a difference is that of a paired bootstrap: documents are drawn with replacement,
and both runs are summed over the same draw, since most of the spread is that of the documents.

n documents
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bytelm.pipelines.evaluation.intervals import bootstrap_interval

TOTAL = "total"
Scored = dict[tuple[str, str], tuple[float, int]]
"""Bits and bytes of each document, by its set's root hash and its key."""


@dataclass(frozen=True)
class Difference:
    """Bits per byte of two runs on the same documents of one modality."""

    modality: str
    first: float
    second: float
    interval: tuple[float, float] | None
    """95 % of `second - first`; None below two documents."""
    documents: int

    @property
    def change(self) -> float:
        """Bits per byte of the second run minus those of the first: below 0 it is better."""
        return self.second - self.first


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Compare two evaluations on the documents that both scored.

    Args:
        first, second: evaluations as `bytelm evaluate --json` prints them.
    Returns:
        one for each modality that both have, and `total` if there are several.
    """
    firsts, seconds = _scored(first), _scored(second)
    found = [
        _difference(name, scored, seconds[name])
        for name, scored in firsts.items()
        if name in seconds
    ]
    found = [difference for difference in found if difference.documents]
    return found if len(found) > 2 else found[:1]  # the total of one modality says nothing new


def _scored(evaluation: Mapping[str, Any]) -> dict[str, Scored]:
    """The documents of each modality, and last of all of them as `total`.

    A set is known by its root hash, so that a copy at another path is the same set.
    """
    roots = {s["path"]: s.get("root", s["path"]) for s in evaluation["about"].get("sets", [])}
    scored: dict[str, Scored] = {}
    total: Scored = {}
    for entry in evaluation.get("documents", []):
        if entry["bits"] is None:  # not a number: the model diverged
            continue
        key = (roots.get(entry["set"], entry["set"]), entry["key"])
        for documents in (scored.setdefault(entry["modality"], {}), total):
            bits, size = documents.get(key, (0.0, 0))
            documents[key] = (bits + entry["bits"], size + entry["bytes"])
    return {**scored, TOTAL: total}


def _difference(name: str, first: Scored, second: Scored) -> Difference:
    """Compare the documents that are in both, with the same number of bytes."""
    keys = [k for k, (_, size) in first.items() if size and second.get(k, (0.0, 0))[1] == size]
    sizes = np.array([first[key][1] for key in keys])
    first_bits = np.array([first[key][0] for key in keys])
    second_bits = np.array([second[key][0] for key in keys])
    total = max(int(sizes.sum()), 1)
    return Difference(
        name,
        float(first_bits.sum()) / total,
        float(second_bits.sum()) / total,
        bootstrap_interval(second_bits - first_bits, sizes),
        len(keys),
    )
