"""Predictors of texts and other bytes: the last bytes and words as contexts."""

from __future__ import annotations

import numpy as np

from bytelm.model.codec_features.layout import SIZE
from bytelm.model.numba_kernels import kernel_part
from bytelm.model.output_mixing.contexts import stir
from bytelm.model.output_mixing.state import PredictorState

TEXT_ORDERS = (1, 2, 3, 4, 6)
LONGEST_WORD = 20


@kernel_part
def hash_text(state: PredictorState, row: int) -> None:
    """Contexts of a byte: those before it by order, its word so far, and with the word before."""
    r, data, prediction = state.rows[row], state.bytes[row], state.predictions[row]
    size, key, order = r.place[SIZE], np.uint64(0), 0
    for i in range(len(TEXT_ORDERS)):
        while order < TEXT_ORDERS[i]:
            order += 1
            key = stir(key, data[size - order] + 1 if order <= size else 0)
        prediction.hashes[i] = key
    index, key = size - 1, np.uint64(1 << 32)
    for i in range(2):
        length = 0
        while index >= 0 and length < LONGEST_WORD and _is_letter(data[index]):
            key = stir(key, data[index] | 32)
            index -= 1
            length += 1
        index -= 1
        key = stir(key, 256 + i)
        prediction.hashes[len(TEXT_ORDERS) + i] = key
    prediction.contexts = len(TEXT_ORDERS) + 2


@kernel_part
def _is_letter(byte: int) -> bool:
    """Whether a byte belongs to a word: a letter of ASCII, or a part of one beyond."""
    return 97 <= byte | 32 <= 122 or byte > 127
