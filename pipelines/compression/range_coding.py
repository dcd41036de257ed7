"""Range coding of ids under the probabilities of a model that does not mix its outputs.

Those of mixed outputs are coded by binary decisions: `model/output_mixing/bit_coder.py`.

R ids of a step    V ids of the vocabulary
"""

from __future__ import annotations

import constriction
import numpy as np
import numpy.typing as npt

from bytelm.pipelines.compression.container import Words

_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
"""Probabilities [R, V] rounded to 24 bits, none of them to zero."""
Ids = npt.NDArray[np.uint16]
Probabilities = npt.NDArray[np.float64]


class RangeEncoder:
    """Encodes ids to words."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def code(self, ids: Ids, probabilities: Probabilities) -> Ids:
        """Encode ids [R]; returns them."""
        self._encoder.encode(ids.astype(np.int32), _CATEGORICAL, probabilities)
        return ids

    def words(self) -> Words:
        """Everything that was encoded."""
        return self._encoder.get_compressed()


class RangeDecoder:
    """Decodes words to ids."""

    def __init__(self, words: Words):
        self._decoder = constriction.stream.queue.RangeDecoder(words)

    def code(self, ids: Ids, probabilities: Probabilities) -> Ids:
        """Decode the next ids [R], whatever the given ones; ValueError for impossible words."""
        try:
            return self._decoder.decode(_CATEGORICAL, probabilities).astype(np.uint16)
        except AssertionError as error:  # raised by the library for impossible words
            raise ValueError("the range coder met what it never writes") from error

    @property
    def is_at_end(self) -> bool:
        """False if words are certainly left."""
        return self._decoder.maybe_exhausted()
