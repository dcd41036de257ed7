"""Inputs of the compiled step: a model's shapes and offsets as records, its numbers as arrays.

Offsets count numbers of one of the arrays that `step_layout.py` makes, -1 or a matrix without
outputs where a model has none.

Shapes:
    B   rows of the decoder      b   bytes in a position of a stage
    m   positions in a sequence of a stage: a row for stage 0, else a position of its parent
    r   positions of the preceding sequence that a position attends to
    H   heads of c channels
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.uint16]
"""Numbers in bf16."""
Ints = npt.NDArray[np.int64]
Record = Any
"""One of the records below."""

_int = np.int64
LINEAR = np.dtype(
    [("offset", _int), ("inputs", _int), ("outputs", _int), ("is_bf16", np.bool_)],
)
"""A matrix in panels of PANEL outputs, among the weights or, if it `is_bf16`, those in bf16; no
`outputs` where a model has none."""
NORM = np.dtype([("gain", _int), ("bias", _int), ("eps", np.float32)])
"""Offsets of a norm's weights; `bias` is -1 for an RMSNorm."""
BLOCK = np.dtype(
    [
        ("attention_norm", NORM),
        ("qkv", LINEAR),
        ("qk_gain", _int),  # offset of [2 H], -1 without QK norm
        ("output", LINEAR),
        ("feed_forward_norm", NORM),
        ("up", LINEAR),
        ("down", LINEAR),
        ("keys", _int),  # offsets of [B, H, r + m, c] in the cache
        ("values", _int),
    ]
)
STAGE = np.dtype(
    [
        ("position_bytes", _int),  # b
        ("sequence_length", _int),  # m
        ("previous", _int),  # r
        ("window", _int),  # positions that one attends to
        ("width", _int),
        ("heads", _int),
        ("swiglu", np.bool_),
        ("first_block", _int),
        ("last_block", _int),
        ("norm", NORM),
        ("byte_embed", _int),  # offsets of tables
        ("byte_width", _int),
        ("embedded_ids", _int),
        ("start", _int),
        ("position_embed", _int),  # -1 where the stage has none, as those below
        ("filter_3", LINEAR),
        ("filter_5", LINEAR),
        ("filter_7", LINEAR),
        ("patch_in", LINEAR),
        ("patch_out", LINEAR),
        ("parent", LINEAR),
        ("parent_output", _int),  # offset of [B, m * slice] in the cache
        ("ngram_embed", _int),
        ("ngram_table_size", _int),
        ("ngram_width", _int),
        ("ngram_in", LINEAR),
        ("feature_embed", _int),
        ("feature_in", LINEAR),
        ("rotations", _int),  # offset of two tables [positions, c / 2, (cos, sin)]
        ("coarse_positions", _int),
    ]
)


class Step(NamedTuple):
    """The arrays of a model (`step_layout.py`) and of its rows that the parts of a step use."""

    weights: Floats
    bf16_weights: Halves
    rotations: npt.NDArray[np.float64]
    stages: Record
    blocks: Record
    heads: Record
    """Arrays of STAGE, of BLOCK, and of LINEAR."""
    cache: Floats
    """Keys and values of all blocks, and outputs of all stages but the last."""
    buffers: Floats
    """[BUFFERS, R * widest + slots], whatever they hold."""
    held: Ints
    """[B], ids that each row holds."""
    ids: Ints
    """[B, lookback + ids], with -1 before the start of the document."""
    lookback: int
    modality: Ints
    """[B], the output matrix of each row."""
    features: npt.NDArray[np.int16]
    """[B, J], codec features of each row's next id."""
