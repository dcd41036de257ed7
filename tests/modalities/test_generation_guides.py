"""Guides: any draw from the ids that they allow ends as a valid payload."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.modalities import generation_guides
from bytelm.modalities.framing import EOM, VOCAB_SIZE
from bytelm.modalities.generation_guides import ROOM, Guide

UTF8 = generation_guides.utf8()


def allowed(guide: Guide, state: int, room: int) -> list[int]:
    return np.flatnonzero(guide.allowed[state, min(room, ROOM)]).tolist()


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.booleans())
def test_any_walk_is_valid_utf8(budget: int, seed: int, avoid_ascii: bool) -> None:
    rng = np.random.default_rng(seed)
    drawn, state = bytearray(), 0
    while True:
        choices = allowed(UTF8, state, budget - len(drawn))
        assert choices, "there is always something to draw"
        if avoid_ascii and choices[-1] >= 128:
            choices = [choice for choice in choices if choice >= 128]
        chosen = int(rng.choice(choices))
        if chosen == EOM:
            break
        drawn.append(chosen)
        state = int(UTF8.next[state, chosen])
    assert drawn
    assert drawn.decode("utf-8")
    assert len(drawn) <= budget


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_every_text_is_allowed(content: str) -> None:
    raw = content.encode("utf-8", "ignore")
    state = 0
    for position, byte in enumerate(raw):
        assert byte in allowed(UTF8, state, len(raw) - position)
        state = int(UTF8.next[state, byte])
    assert UTF8.follow(raw) == state
    assert allowed(UTF8, state, 0) == [EOM]


@pytest.mark.parametrize(
    "broken", [b"\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff"]
)
def test_invalid_utf8_is_not_allowed(broken: bytes) -> None:
    with pytest.raises(ValueError, match="may not stand"):
        UTF8.follow(broken)


def test_no_text_ends_inside_a_character_nor_before_the_first() -> None:
    assert EOM not in allowed(UTF8, 0, 4)
    inside = UTF8.follow(b"\xc3")
    assert allowed(UTF8, inside, 3) == list(range(0x80, 0xC0))
    between = UTF8.follow(b"\xc3\xa9")
    assert EOM in allowed(UTF8, between, 2)
    assert 0xC3 in allowed(UTF8, between, 2)
    assert 0xE2 not in allowed(UTF8, between, 2), "three bytes do not fit into room for two"


def test_a_fixed_payload_takes_any_byte_and_no_special() -> None:
    guide = generation_guides.fixed()
    state = guide.follow(bytes([0, 255, 7]))
    assert guide.allowed[state, 1].tolist() == [i < 256 for i in range(VOCAB_SIZE)]
    assert allowed(guide, state, 0) == [EOM]


def test_any_text_takes_any_byte_and_ends_after_the_first() -> None:
    guide = generation_guides.any_text()
    assert allowed(guide, 0, 9) == list(range(256))
    assert allowed(guide, guide.follow(b"\xff"), 9) == [*range(256), EOM]
