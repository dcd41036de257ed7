"""Rotary position embedding (RoPE, arXiv 2104.09864).

Shapes:
    S   positions of a stage laid flat
    H   heads, each of c channels
"""

from __future__ import annotations

import torch
from torch import Tensor

RopeTable = tuple[Tensor, Tensor]
"""Cosine and signed sine of each position's channels, [S, 1, c] each; see `rope_cos_sin`."""


def rope_cos_sin(position: Tensor, channels: int, dtype: torch.dtype) -> RopeTable:
    """Tables that rotate channel pair (i, i + c / 2) by position * 10000^(-2 i / c).

    Args:
        position: [S], the position in its document.
        channels: c, even.
        dtype: type of the tables. Angles are computed in float64, because float32 would round
            those of distant positions.
    """
    pair = torch.arange(channels // 2, dtype=torch.float64, device=position.device)
    angles = position.double()[:, None, None] * 10_000.0 ** (-2.0 * pair / channels)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)  # [S, 1, c / 2]
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rope(x: Tensor, rope: RopeTable) -> Tensor:
    """Rotate the channel pairs (i, i + c / 2) of x [S, H, c]."""
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
