"""Guides: the ids that may come next in a generated payload, so that it ends as a valid file.

A guide is an automaton over bytes in tables, so that many payloads can be followed at once. From
every state that it reaches with room for r more bytes, a payload can end within r bytes.

    S states    r bytes of room, 0 to ROOM (for ROOM or more)    V ids
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bytelm.modalities.framing import EOM, VOCAB_SIZE

ROOM = 4
"""Bytes of the longest UTF-8 character; more room allows nothing more."""

_BYTES = 256
_CONTINUATION = range(0x80, 0xC0)
_FORMS: tuple[tuple[range, tuple[range, ...]], ...] = (
    (range(0x80), ()),
    (range(0xC2, 0xE0), (_CONTINUATION,)),
    (range(0xE0, 0xE1), (range(0xA0, 0xC0), _CONTINUATION)),
    (range(0xE1, 0xED), (_CONTINUATION, _CONTINUATION)),
    (range(0xED, 0xEE), (range(0x80, 0xA0), _CONTINUATION)),
    (range(0xEE, 0xF0), (_CONTINUATION, _CONTINUATION)),
    (range(0xF0, 0xF1), (range(0x90, 0xC0), _CONTINUATION, _CONTINUATION)),
    (range(0xF1, 0xF4), (_CONTINUATION, _CONTINUATION, _CONTINUATION)),
    (range(0xF4, 0xF5), (range(0x80, 0x90), _CONTINUATION, _CONTINUATION)),
)
"""The forms of a character: its first byte and the bytes that follow (RFC 3629: no overlong forms,
no surrogates, at most U+10FFFF)."""


@dataclass(frozen=True)
class Guide:
    """The tables of an automaton that starts in state 0."""

    allowed: npt.NDArray[np.bool_]
    """[S, ROOM + 1, V] the ids that may come next; EOM alone where no byte may."""
    next: npt.NDArray[np.int64]
    """[S, 256] the state after a byte."""

    def follow(self, payload: bytes) -> int:
        """The state after the first bytes of a payload; ValueError for a byte not allowed there."""
        state = 0
        for byte in payload:
            if not self.allowed[state, ROOM, byte]:
                raise ValueError(f"the byte {byte:#04x} may not stand where it does")
            state = int(self.next[state, byte])
        return state


def fixed() -> Guide:
    """Any bytes until there is no more room: an image, or a sound of a given length."""
    return Guide(_masks(1), np.zeros((1, _BYTES), np.int64))


def any_text() -> Guide:
    """Any bytes, and EOM after the first."""
    allowed = _masks(2)
    allowed[1, :, EOM] = True
    return Guide(allowed, np.ones((2, _BYTES), np.int64))


def utf8() -> Guide:
    """Valid UTF-8 of at least one character; EOM between characters."""
    unfinished = sorted(  # the bytes that may still be due inside a character
        {following[i:] for _, following in _FORMS for i in range(len(following))},
        key=lambda due: (len(due), due[0].start, due[0].stop),
    )
    state_of = {due: 2 + i for i, due in enumerate(unfinished)} | {(): 1}
    allowed = _masks(len(state_of) + 1)
    allowed[:, 1:, :_BYTES] = False
    after = np.zeros((len(state_of) + 1, _BYTES), np.int64)
    for state in (0, 1):  # before the first character, and between characters
        for first, following in _FORMS:
            allowed[state, 1 + len(following) :, first.start : first.stop] = True
            after[state, first.start : first.stop] = state_of[following]
    allowed[1, :, EOM] = True
    for due in unfinished:
        state, bounds = state_of[due], slice(due[0].start, due[0].stop)
        allowed[state, len(due) :, bounds] = True
        after[state, bounds] = state_of[due[1:]]
    return Guide(allowed, after)


def _masks(states: int) -> npt.NDArray[np.bool_]:
    """[S, ROOM + 1, V]: any byte where there is room, else EOM."""
    allowed = np.zeros((states, ROOM + 1, VOCAB_SIZE), np.bool_)
    allowed[:, 1:, :_BYTES] = True
    allowed[:, 0, EOM] = True
    return allowed
