"""A range coder of binary decisions, as a part of kernels that predict and learn between them.

The interval [low, low + range) of 64-bit numbers is divided as the probabilities of a decision
are, and the part of what came is the next interval. Upper words leave an encoder when nothing but a
carry can change them, and a carry goes back into those that have left (Martin, "Range encoding",
1979).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from bytelm.model.numba_kernels import kernel_part
from bytelm.model.output_mixing.state import DECODE, IDLE, CoderState

SHARE_BITS = np.uint64(24)
"""Bits of a coded probability."""
WORD_BITS = np.uint64(32)
LEAST_RANGE, MOST_WORD = np.uint64(1 << 32), np.uint32(0xFFFFFFFF)
_part = partial(kernel_part, is_inlined=True)
_ONE, _MOST_SHARE = np.uint64(1), np.uint64((1 << 24) - 1)


@_part
def code_bit(coder: CoderState, bit: int, one: float) -> int:
    """Code a decision whose probability of a one is `one`; returns it, which a decoder reads."""
    c = coder.coder[0]
    if c.job == IDLE:
        return bit
    share = min(max(np.uint64(one * (1 << 24)), _ONE), _MOST_SHARE)
    ones = (c.range >> SHARE_BITS) * share
    if c.job == DECODE:
        bit = 1 if c.ahead < ones else 0
    if bit:
        c.range = ones
    else:
        c.range -= ones
        _skip(coder, ones)
    if c.range < LEAST_RANGE:
        c.range <<= WORD_BITS
        _shift(coder)
    return bit


@_part
def _skip(coder: CoderState, distance: np.uint64) -> None:
    """Raise the interval's lower end."""
    c = coder.coder[0]
    if c.job == DECODE:
        c.ahead -= distance
        return
    c.low += distance
    if c.low < distance:  # a carry
        index = c.count - 1
        while coder.words[index] == MOST_WORD:
            coder.words[index] = 0
            index -= 1
        coder.words[index] += np.uint32(1)


@_part
def _shift(coder: CoderState) -> None:
    """Write the upper word, or read the next one; zeros follow the last."""
    c = coder.coder[0]
    if c.job == DECODE:
        following = coder.words[c.count] if c.count < len(coder.words) else np.uint32(0)
        c.ahead = c.ahead << WORD_BITS | np.uint64(following)
    else:
        coder.words[c.count] = c.low >> WORD_BITS
        c.low <<= WORD_BITS
    c.count += 1
