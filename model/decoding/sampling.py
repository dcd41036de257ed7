"""Drawing the next id of every row from its logits.

Shapes:
    B   rows                     V   vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bytelm.model.decoding.sampling_kernel import draw_rows

NOISE_BLOCK = 256
"""Random numbers of a row that are drawn at once."""


@dataclass(frozen=True)
class Sampling:
    """Settings of a draw; the limits apply one after the other, in the order of the fields.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest id without a draw."""
    top_k: int = 0
    """Keep the k likeliest ids; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest ids whose probabilities add up to at least this, above 0."""
    min_p: float = 0.0
    """Keep ids with at least this fraction of the likeliest id's probability."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all ids) or more, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be 0 to 1, got {self.min_p}")

    def limits(self) -> tuple[float, int, float, float]:
        """The fields in the types that `draw_rows` is compiled for."""
        return float(self.temperature), int(self.top_k), float(self.top_p), float(self.min_p)


class Noise:
    """Uniform numbers in [0, 1); those of a row depend on its seed alone, not on other rows."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device
        self._block = torch.empty(0, len(seeds))
        self._next = 0

    def draw(self) -> Tensor:
        """The next number of each row, [B] float64."""
        if self._next == len(self._block):
            rows = [
                torch.rand(NOISE_BLOCK, generator=g, dtype=torch.float64) for g in self._generators
            ]
            # Rounding could make a number next to 1 reach the total probability.
            self._block = torch.stack(rows, dim=1).clamp(max=1.0 - 2.0**-32).to(self._device)
            self._next = 0
        self._next += 1
        return self._block[self._next - 1]


def sample(
    logits: Tensor, sampling: Sampling, noise: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Draw an id for each row.

    Args:
        logits: [B, V].
        noise: [B], from `Noise.draw`; not read at temperature 0.
        allowed: [B, V] bool, ids that may be drawn, at least one in each row.

    Returns:
        [B] int64.
    """
    if logits.device.type != "cpu":
        return sample_by_tensors(logits, sampling, noise, allowed)
    if allowed is None:
        allowed = torch.ones_like(logits, dtype=torch.bool)
    ids = np.empty(len(logits), np.int64)
    draw_rows(
        logits.to(torch.float64, copy=True, memory_format=torch.contiguous_format).numpy(),
        allowed[:, None].contiguous().numpy(),
        np.arange(len(logits)),
        np.zeros(len(logits), np.int64),
        noise.double().contiguous().numpy(),
        *sampling.limits(),
        np.empty(logits.shape[1], np.bool_),
        ids,
    )
    return torch.from_numpy(ids)


def sample_by_tensors(
    logits: Tensor, sampling: Sampling, noise: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """`sample` by tensor operations, of which none reads from a device."""
    logits = logits.double()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if sampling.temperature == 0.0:
        return logits.argmax(dim=1)
    logits = (logits - logits.amax(dim=1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        kept, ids = logits.topk(sampling.top_k, dim=1)
        logits = torch.full_like(logits, -torch.inf).scatter(1, ids, kept)
    probabilities = logits.softmax(dim=1)
    if sampling.top_p < 1.0:
        ordered, ids = probabilities.sort(dim=1, descending=True, stable=True)
        sum_before = ordered.cumsum(dim=1) - ordered
        probabilities = probabilities.scatter(1, ids, ordered * (sum_before < sampling.top_p))
    if sampling.min_p > 0.0:
        least = sampling.min_p * probabilities.amax(dim=1, keepdim=True)
        probabilities = probabilities * (probabilities >= least)
    # Take the first id whose cumulative probability is above a point in [0, total). An id of
    # probability 0 gets -1, so that it is never taken.
    cumulative = probabilities.cumsum(dim=1).masked_fill(probabilities == 0.0, -1.0)
    point = noise[:, None] * cumulative.amax(dim=1, keepdim=True)
    return (cumulative > point).to(torch.uint8).argmax(dim=1)
