"""Contexts of texts and other bytes: what stands before a byte, above it, and around its line."""

from __future__ import annotations

import numpy as np

from bytelm.model.codec_features.layout import SIZE
from bytelm.model.numba_kernels import kernel_part
from bytelm.model.output_mixing.contexts import stir
from bytelm.model.output_mixing.state import PredictorState

ORDERS = (0, 1, 2, 3, 6)
LONGEST_WORD, WIDEST_INDENT = 20, 40
NEWLINE, SPACE = 10, 32


@kernel_part
def hash_text(state: PredictorState, row: int) -> None:
    """Contexts of a byte: those before it by order, its word so far, the byte that the match
    predicts, its column with the byte above it, how its line begins, and the last bytes that belong
    to no word."""
    r, data, prediction = state.rows[row], state.bytes[row], state.predictions[row]
    size, key, order, hashes = r.place[SIZE], np.uint64(0), 0, prediction.hashes
    last = data[size - 1] if size else 0
    for i in range(len(ORDERS)):
        while order < ORDERS[i]:
            order += 1
            key = stir(key, data[size - order] + 1 if order <= size else 0)
        hashes[i] = key
    count = len(ORDERS)
    hashes[count] = _hash_word(state, row)
    level = prediction.level if prediction.expected >= 0 else 0
    hashes[count + 1] = stir(stir(np.uint64(77), (prediction.expected + 1) * 64 + level), last)
    column = size - r.line
    is_below = r.line_before + column < r.line
    above = data[r.line_before + column] if is_below else NEWLINE
    hashes[count + 2] = stir(stir(np.uint64(78), above), column)
    indent, most = 0, min(column, WIDEST_INDENT)
    while indent < most and data[r.line + indent] == SPACE:
        indent += 1
    first = data[r.line + indent] if indent < column else 0
    hashes[count + 3] = stir(stir(np.uint64(79), indent + 256 * first), last)
    hashes[count + 4] = stir(stir(np.uint64(80), r.marks), last)
    prediction.contexts = count + 5


@kernel_part
def push_text(state: PredictorState, row: int, byte: int) -> None:
    """Take the next byte into what is known of lines and of bytes outside words."""
    r = state.rows[row]
    if not _is_letter(byte):
        r.marks = (256 * r.marks + byte) % 2**24
    if byte == NEWLINE:
        r.line_before, r.line = r.line, r.place[SIZE] + 1


@kernel_part
def _hash_word(state: PredictorState, row: int) -> np.uint64:
    """The letters just before the next byte."""
    data, end = state.bytes[row], state.rows[row].place[SIZE]
    key, index = np.uint64(1 << 32), end - 1
    while index >= 0 and end - index <= LONGEST_WORD and _is_letter(data[index]):
        key = stir(key, data[index] | 32)
        index -= 1
    return stir(key, 256)


@kernel_part
def _is_letter(byte: int) -> bool:
    """Whether a byte belongs to a word: a letter of ASCII, or a part of one beyond."""
    return 97 <= byte | 32 <= 122 or byte > 127
