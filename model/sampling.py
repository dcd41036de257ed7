"""Drawing the next id of every row from its logits.

Shapes:
    B   rows                     V   vocabulary
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def sample(
    logits: Tensor,
    temperature: float,
    top_p: float,
    generators: Sequence[torch.Generator],
    allowed: Tensor | None = None,
) -> Tensor:
    """One id for each row, [B] int64.

    logits [B, V].
    temperature: divides the logits; 0 takes the likeliest id.
    top_p: in (0, 1]; draws from the likeliest ids whose probabilities first reach it.
    generators: one for each row, of which each call takes one number (none at temperature 0), so
        that a row's ids do not depend on the other rows.
    allowed [B, V] bool: the ids that may be drawn.

    Raises ValueError for a temperature or top_p out of range, for another number of generators
    than rows, and for a row that allows no id.
    """
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if len(generators) != len(logits):
        raise ValueError(f"{len(generators)} generators for {len(logits)} rows: give one for each")
    logits = logits.double()
    if allowed is not None:
        if not allowed.any(dim=1).all():
            raise ValueError("a row allows no id at all: allow at least one")
        logits = logits.masked_fill(~allowed, -torch.inf)
    if temperature == 0.0:
        return logits.argmax(dim=1)

    logits = (logits - logits.amax(dim=1, keepdim=True)) / temperature
    probabilities, ids = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    upto = probabilities.cumsum(dim=1)  # [B, V]
    is_kept = (upto - probabilities < top_p) & (probabilities > 0.0)
    upto = upto.masked_fill(~is_kept, torch.inf)
    kept = is_kept.sum(dim=1, keepdim=True)  # [B, 1]
    mass = upto.gather(1, kept - 1)
    drawn = torch.cat([_uniform(generator, logits.device) for generator in generators])[:, None]
    place = torch.searchsorted(upto, drawn * mass, right=True).clamp(max=kept - 1)
    return ids.gather(1, place).squeeze(1)


def _uniform(generator: torch.Generator, device: torch.device) -> Tensor:
    """A number in [0, 1), [1] float64."""
    drawn = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn.to(device)
