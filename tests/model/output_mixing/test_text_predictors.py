"""Contexts of texts: equal where what they stand for is equal, and different elsewhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bytelm.model.codec_features.layout import KIND, PLACES, SIZE, UNIT
from bytelm.model.codec_features.state import BYTES
from bytelm.model.output_mixing import predictors
from bytelm.model.output_mixing.state import PREDICTION, new_predictors

ORDER_0, FIRST_GAP, WORD, PAIR, OPENING = 0, 7, 9, 10, 13
MATCH, COLUMN, LINE_START, MARKS = 14, 15, 16, 17
"""Indexes of contexts."""


def contexts_of(text: bytes) -> npt.NDArray[np.uint64]:
    """Contexts [len(text) + 1, CONTEXTS] of each byte, and of one after the text."""
    ids = np.frombuffer(text + b"?", np.uint8).astype(np.int64)
    places = np.zeros((len(ids), PLACES), np.int32)
    places[:, KIND], places[:, UNIT], places[:, SIZE] = BYTES, 1, np.arange(len(ids))
    predictions = np.zeros(len(ids), PREDICTION)
    predictors.compile_kernels()
    state, rows = new_predictors(1, len(ids)), np.zeros_like(ids)
    predictors.predict_ids(state, rows, ids, places, predictions)
    assert (predictions["contexts"] == predictions["hashes"].shape[1]).all()
    return predictions["hashes"]


def after(text: bytes) -> npt.NDArray[np.uint64]:
    return contexts_of(text)[-1]


@pytest.mark.parametrize(
    ("context", "same", "other"),
    [
        (WORD, (b"a whale", b"the\tWhale"), b"the shale"),
        (PAIR, (b"white whale", b"a White, whale"), b"white shale"),
        (OPENING, (b"the whale", b"The Weigh"), b"the wha"),
        (FIRST_GAP, (b"whale", b"awake"), b"while"),
        (COLUMN, (b"12;34\n56", b"xx;y\n9z"), b"12;34\n5"),
        (LINE_START, (b"x\n    if a", b"    if cca"), b"  if a"),
        (MARKS, (b"<p class=a", b"<b id=bcda"), b"<p class>a"),
    ],
)
def test_contexts_are_equal_where_what_they_stand_for_is(
    context: int, same: tuple[bytes, bytes], other: bytes
) -> None:
    assert after(same[0])[context] == after(same[1])[context]
    assert after(same[0])[context] != after(other)[context]


def test_a_context_knows_the_byte_that_a_match_predicts() -> None:
    text = b"one two three four, one two three f"
    assert after(text)[MATCH] != after(text + b"i")[MATCH]
    unmatched = [after(b"abcdefgh x")[MATCH], after(b"ijkl, mnop x")[MATCH]]
    assert unmatched[0] == unmatched[1]


def test_order_0_is_one_context_and_higher_orders_read_so_many_bytes() -> None:
    contexts = contexts_of(b"mississippi river")
    assert len(set(contexts[:, ORDER_0])) == 1
    before = [after(text)[1:7] for text in (b"..ssissi", b"mississi", b"mi.issi")]
    assert (before[0] == before[1]).all()
    assert (before[0] == before[2]).tolist() == [True, True, True, True, False, False]
