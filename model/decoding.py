"""Decoding with a cache for every stage: a step runs only the stages that reach a new position.

Shapes:
    B   rows of the decoder      R   rows that a stage advances
    b   bytes in a position of the stage
    m   places in the stage's sequence (a parent's position, or the row for stage 0)
    n   places that are filled or looked at
    H   heads of c channels      V   vocabulary
    d   width of one slice of a parent's output

A row that holds t ids asks for the logits of id t. Stage i then stands at position t // b_i, whose
input is the position before it, so the stage advances exactly when t is a multiple of b_i.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from bytelm.model.layers import Stage
from bytelm.model.megabyte import Megabyte


class StageCache:
    """Keys and values of one stage, and the slices of its newest output for the stage below."""

    def __init__(self, stage: Stage, batch: int, places: int, like: Tensor) -> None:
        self.places = places
        self.above = torch.empty(0)
        shapes = [(batch, block.attention.heads, places, _head_width(block)) for block in stage.blocks]
        self.keys = [like.new_zeros(shape) for shape in shapes]  # [B, H, m, c] for each layer
        self.values = [like.new_zeros(shape) for shape in shapes]
