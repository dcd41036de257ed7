"""What may come next in a payload that is being generated, so that it ends as a valid file.

A guide follows one payload byte by byte. It allows a byte, or EOM where a payload may end, and
within `budget` bytes it always reaches such a place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from bytelm.modalities.framing import EOM, VOCAB_SIZE

Mask = npt.NDArray[np.bool_]


class Guide(ABC):
    """Follows one payload."""

    def __init__(self, budget: int):
        """`budget` is the number of payload bytes that may still come."""
        self.budget = budget

    @property
    def done(self) -> bool:
        """Whether no further byte may come."""
        return self.budget == 0

    @abstractmethod
    def allowed(self) -> Mask:
        """[V] the ids that may come next; only while not `done`."""

    def push(self, byte: int) -> None:
        """Take a payload byte, given by a prompt or drawn from `allowed`."""
        assert self.budget > 0
        self.budget -= 1


class FixedGuide(Guide):
    """Exactly `budget` bytes of any value: an image, or a sound of a given length."""

    _ANY_BYTE: ClassVar[Mask] = np.arange(VOCAB_SIZE) < 256

    def allowed(self) -> Mask:
        """Any byte."""
        return self._ANY_BYTE


class Utf8Guide(Guide):
    """Valid UTF-8 (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF); EOM may come
    between characters."""

    # First byte, bounds of the second byte, number of bytes of the character.
    _FORMS: ClassVar[tuple[tuple[range, range, int], ...]] = (
        (range(0x80), range(0), 1),
        (range(0xC2, 0xE0), range(0x80, 0xC0), 2),
        (range(0xE0, 0xE1), range(0xA0, 0xC0), 3),
        (range(0xE1, 0xED), range(0x80, 0xC0), 3),
        (range(0xED, 0xEE), range(0x80, 0xA0), 3),
        (range(0xEE, 0xF0), range(0x80, 0xC0), 3),
        (range(0xF0, 0xF1), range(0x90, 0xC0), 4),
        (range(0xF1, 0xF4), range(0x80, 0xC0), 4),
        (range(0xF4, 0xF5), range(0x80, 0x90), 4),
    )

    def __init__(self, budget: int):
        super().__init__(budget)
        self._following: list[range] = []  # bounds of the bytes that the character still needs
        self._characters = 0

    def allowed(self) -> Mask:
        """The next byte of the character, or a first byte whose character fits the budget, or
        EOM after the first character."""
        mask = np.zeros(VOCAB_SIZE, np.bool_)
        if self._following:
            mask[self._following[0].start : self._following[0].stop] = True
            return mask
        for first, _, size in self._FORMS:
            mask[first.start : first.stop] = size <= self.budget
        mask[EOM] = self._characters > 0
        return mask

    def push(self, byte: int) -> None:
        """Take a byte of valid UTF-8."""
        super().push(byte)
        if self._following:
            assert byte in self._following.pop(0)
        else:
            second, size = next((s, n) for first, s, n in self._FORMS if byte in first)
            self._following = [second, range(0x80, 0xC0), range(0x80, 0xC0)][: size - 1]
        self._characters += not self._following
