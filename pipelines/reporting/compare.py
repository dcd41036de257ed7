"""Differences of runs: bits per byte on the documents that both scored, with paired intervals.

The interval of a difference is that of a paired bootstrap: documents are drawn with replacement,
and both runs are summed over the same draw, since most of the spread is that of the documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
_DRAWN_AT_ONCE = 1 << 20
"""Documents drawn in one array."""
TOTAL = "total"


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
    common = [key for key in firsts if key in seconds]
    by_modality: dict[str, list[tuple[str, ...]]] = {}
    for key in common:
        by_modality.setdefault(key[0], []).append(key)
    if len(by_modality) > 1:
        by_modality[TOTAL] = common
    return [
        _difference(name, [firsts[k] for k in keys], [seconds[k] for k in keys])
        for name, keys in by_modality.items()
    ]


def paired_interval(
    first_bits: npt.NDArray[np.float64],
    second_bits: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.float64],
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % interval of the difference of two ratios Σ bits / Σ bytes over the same documents.

    Args:
        first_bits, second_bits: [n] bits of each document under each model.
        sizes: [n] payload bytes.
    """
    gains, count = second_bits - first_bits, sizes.size
    rng = np.random.default_rng(0)
    values: list[npt.NDArray[np.float64]] = []
    at_once = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, count, (rows, count))
        values.append(gains[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return float(low), float(high)


def _scored(evaluation: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[float, int]]:
    """Bits and bytes of each document, by modality, set and key.

    A set is known by its root hash, so that a copy at another path is the same set.
    """
    roots = {s["path"]: s.get("root", s["path"]) for s in evaluation["about"].get("sets", [])}
    return {
        (d["modality"], roots.get(d["set"], d["set"]), d["key"]): (d["bits"], d["bytes"])
        for d in evaluation.get("documents", [])
        if d["bytes"]
    }


def _difference(
    name: str, first: Sequence[tuple[float, int]], second: Sequence[tuple[float, int]]
) -> Difference:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a[1] == b[1]]
    sizes = np.array([a[1] for a, _ in pairs], np.float64)
    first_bits = np.array([a[0] for a, _ in pairs])
    second_bits = np.array([b[0] for _, b in pairs])
    total = max(float(sizes.sum()), 1.0)
    interval = paired_interval(first_bits, second_bits, sizes) if len(pairs) > 1 else None
    return Difference(
        name, first_bits.sum() / total, second_bits.sum() / total, interval, len(pairs)
    )
