"""Contexts of texts and other bytes: what stands before a byte, above it, and around its line."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bytelm.model.codec_features.layout import SIZE
from bytelm.model.numba_kernels import kernel_part
from bytelm.model.output_mixing.contexts import near, stir
from bytelm.model.output_mixing.state import LONGEST_WORD, PredictorState

Hashes = npt.NDArray[np.uint64]

ORDERS = (0, 1, 2, 3, 4, 5, 6)
WORD_CONTEXTS = 5
WIDEST_INDENT, MOST_LETTERS = 40, 7
NEWLINE, SPACE = 10, 32


@kernel_part
def hash_text(state: PredictorState, row: int) -> None:
    """Contexts of a byte: those before it by order and with gaps, its word and the words before it,
    the byte that the match predicts, its column with the byte above it, how its line begins, and
    the last bytes that belong to no word."""
    r, data, prediction = state.rows[row], state.bytes[row], state.predictions[row]
    size, key, order, hashes = r.place[SIZE], np.uint64(0), 0, prediction.hashes
    last = near(state, row, 1, 0)
    for i in range(len(ORDERS)):
        while order < ORDERS[i]:
            order += 1
            key = stir(key, near(state, row, order, -1) + 1)
        hashes[i] = key
    count = len(ORDERS)
    hashes[count] = stir(np.uint64(last), near(state, row, 3, 0))
    key = stir(np.uint64(near(state, row, 2, 0)), near(state, row, 3, 0))
    hashes[count + 1] = stir(key, near(state, row, 4, 0))
    _hash_words(state, row, last, hashes[count + 2 :])
    count += 2 + WORD_CONTEXTS
    level = prediction.level if prediction.expected >= 0 else 0
    hashes[count] = stir(stir(np.uint64(77), (prediction.expected + 1) * 64 + level), last)
    column = size - r.line
    is_below = r.line_before + column < r.line
    above = data[r.line_before + column] if is_below else NEWLINE
    hashes[count + 1] = stir(stir(np.uint64(78), above), column)
    indent, most = 0, min(column, WIDEST_INDENT)
    while indent < most and data[r.line + indent] == SPACE:
        indent += 1
    first = data[r.line + indent] if indent < column else 0
    hashes[count + 2] = stir(stir(np.uint64(79), indent + 256 * first), last)
    hashes[count + 3] = stir(stir(np.uint64(80), r.marks), last)
    prediction.contexts = count + 4


@kernel_part
def _hash_words(state: PredictorState, row: int, last: int, hashes: Hashes) -> None:
    """Contexts of the word so far: alone, with the word before it, with its length, with the second
    word before it; and of the word before it with its first letter and its length."""
    r, prediction = state.rows[row], state.predictions[row]
    letters = r.letters
    prediction.letters = min(letters, LONGEST_WORD)
    hashes[0] = stir(r.word, 256)
    hashes[1] = stir(r.word, r.word_before)
    with_last = stir(r.word, last)
    hashes[2] = stir(with_last, letters)
    hashes[3] = stir(with_last, r.word_second)
    opening = near(state, row, letters, 0) | 32 if letters else 0
    hashes[4] = stir(r.word_before, opening + 256 * min(letters, MOST_LETTERS))


@kernel_part
def push_text(state: PredictorState, row: int, byte: int) -> None:
    """Take the next byte into what is known of words, of lines and of bytes outside words."""
    r = state.rows[row]
    if _is_letter(byte):
        r.word, r.letters = stir(r.word, (byte | 32) + 1), r.letters + 1
    else:
        r.marks = (256 * r.marks + byte) % 2**24
        if r.letters:
            r.word_second, r.word_before = r.word_before, r.word
        r.word, r.letters = np.uint64(0), 0
    if byte == NEWLINE:
        r.line_before, r.line = r.line, r.place[SIZE] + 1


@kernel_part
def _is_letter(byte: int) -> bool:
    """Whether a byte belongs to a word: a letter of ASCII, or a part of one beyond."""
    return 97 <= byte | 32 <= 122 or byte > 127
