"""Rotary position embedding (arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

RopeTable = tuple[Tensor, Tensor]
"""Cosine and signed sine of each position's channels, [S, 1, c] each; see `rope_cos_sin`."""


def rope_cos_sin(place: Tensor, channels: int, dtype: torch.dtype) -> RopeTable:
    """The rotary embedding of arXiv 2104.09864: pair (i, i + c / 2) turns by
    place * 10000^(-2 i / c).

    place [S]; in float64, so that far places stay exact, and then in `dtype`.
    """
    pair = torch.arange(channels // 2, dtype=torch.float64, device=place.device)
    angles = place.double()[:, None, None] * 10_000.0 ** (-2.0 * pair / channels)  # [S, 1, c / 2]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rope(x: Tensor, rope: RopeTable) -> Tensor:
    """x [S, H, c], whose channel pairs (i, i + c / 2) are turned."""
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
