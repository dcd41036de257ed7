"""Range coding of ids under the model's probabilities."""

from __future__ import annotations

from typing import Protocol

import constriction
import numpy as np
import numpy.typing as npt

from bytelm.pipelines.compression.container import Words

_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
"""Probabilities [R, V] rounded to 24 bits, none of them to zero."""
Ids = npt.NDArray[np.uint16]
Probabilities = npt.NDArray[np.float64]


class Coder(Protocol):
    def code(self, ids: Ids, probabilities: Probabilities) -> Ids:
        """Codes `ids` [R] under `probabilities` [R, V]; returns them, which a reader finds."""


class RangeEncoder:
    """Takes ids and makes words."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def code(self, ids: Ids, probabilities: Probabilities) -> Ids:
        self._encoder.encode(ids.astype(np.int32), _CATEGORICAL, probabilities)
        return ids

    def words(self) -> Words:
        """All that was written."""
        return self._encoder.get_compressed()


class RangeDecoder:
    """Takes words and makes ids, whatever the ids that it is given."""

    def __init__(self, words: Words):
        self._decoder = constriction.stream.queue.RangeDecoder(words)

    def code(self, ids: Ids, probabilities: Probabilities) -> Ids:
        try:
            return self._decoder.decode(_CATEGORICAL, probabilities).astype(np.uint16)
        except AssertionError as error:  # the library's word for impossible data
            raise ValueError("the range coder met what it never writes") from error

    @property
    def is_at_end(self) -> bool:
        """False where words are left for certain."""
        return self._decoder.maybe_exhausted()
