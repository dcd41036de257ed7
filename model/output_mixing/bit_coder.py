"""Range coders of binary decisions: what an encoder writes and a decoder reads.

`kernels` divides the interval of each decision. A decision costs at most 24 bits, and one that is
certain next to nothing: shares have 24 bits of an interval of at least 32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bytelm.model.output_mixing.state import DECODE, ENCODE, IDLE, CoderState, new_coder

Words = npt.NDArray[np.uint32]

MOST_WORDS = 32
"""Words of an id at most: its eight bits, and whether it is each of some other ids."""


class BitEncoder:
    """Encodes decisions to words."""

    def __init__(self) -> None:
        self._state = new_coder(ENCODE, np.zeros(1 << 10, np.uint32))

    def state_for(self, ids: int) -> CoderState:
        """The coder's state, with room for the words of so many more ids."""
        coder, words = self._state
        missing = int(coder["count"][0]) + 1 + MOST_WORDS * ids - len(words)
        if missing > 0:
            words = np.concatenate([words, np.zeros(max(missing, len(words)), np.uint32)])
            self._state = CoderState(coder, words)
        return self._state

    def words(self) -> Words:
        """Everything that was encoded; nothing can be added afterwards."""
        coder, words = self.state_for(0)
        count, low = int(coder["count"][0]), int(coder["low"][0])
        last = -(-low >> 32)  # the shortest number of the interval begins with this word
        for index in range(count - 1, -1, -1) if last >> 32 else ():
            words[index] = (int(words[index]) + 1) & 0xFFFFFFFF
            if words[index]:
                break
        words[count] = last & 0xFFFFFFFF
        return words[: count + 1].copy()


class BitDecoder:
    """Decodes words to decisions."""

    def __init__(self, words: Words) -> None:
        self._state = new_coder(DECODE, np.ascontiguousarray(words))

    def state_for(self, ids: int) -> CoderState:
        """The coder's state; any words decode to ids."""
        return self._state

    @property
    def is_at_end(self) -> bool:
        """Whether exactly the encoder's words were read."""
        coder, words = self._state
        return int(coder["count"][0]) == len(words) + 1


BitCoder = BitEncoder | BitDecoder

IDLE_CODER = new_coder(IDLE, np.zeros(0, np.uint32))
"""Lets decisions pass."""
