"""Guides: whatever is drawn from what they allow is a valid payload."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.modalities.framing import EOM, VOCAB_SIZE
from bytelm.modalities.guides import FixedGuide, Utf8Guide


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.booleans())
def test_any_walk_is_valid_utf8(budget: int, seed: int, avoid_ascii: bool) -> None:
    rng = np.random.default_rng(seed)
    guide, drawn = Utf8Guide(budget), bytearray()
    while not guide.done:
        allowed = np.flatnonzero(guide.allowed())
        assert allowed.size, "there is always something to draw"
        if avoid_ascii and (allowed >= 128).any():
            allowed = allowed[allowed >= 128]
        chosen = int(rng.choice(allowed))
        if chosen == EOM:
            break
        drawn.append(chosen)
        guide.push(chosen)
    assert drawn
    assert drawn.decode("utf-8")
    assert len(drawn) <= budget


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_every_text_is_allowed(content: str) -> None:
    raw = content.encode("utf-8", "ignore")
    guide = Utf8Guide(len(raw))
    for byte in raw:
        assert guide.allowed()[byte]
        guide.push(byte)
    assert guide.done


@pytest.mark.parametrize(
    "broken", [b"\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff"]
)
def test_invalid_utf8_is_not_allowed(broken: bytes) -> None:
    guide = Utf8Guide(10)
    for byte in broken:
        if not guide.allowed()[byte]:
            return
        guide.push(byte)
    pytest.fail(f"{broken!r} was allowed")


def test_no_text_ends_inside_a_character_nor_before_the_first() -> None:
    guide = Utf8Guide(4)
    assert not guide.allowed()[EOM]
    guide.push(0xC3)
    assert not guide.allowed()[EOM]
    guide.push(0xA9)
    assert guide.allowed()[EOM]
    assert not guide.allowed()[0xE2], "three bytes do not fit the two that are left"


def test_a_fixed_payload_takes_any_byte_and_no_special() -> None:
    guide = FixedGuide(3)
    for byte in (0, 255, 7):
        assert guide.allowed().tolist() == [i < 256 for i in range(VOCAB_SIZE)]
        guide.push(byte)
    assert guide.done
