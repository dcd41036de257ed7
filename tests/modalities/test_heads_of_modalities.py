"""Where the heads put bytes: classes of a text, places in a picture, in a sample and in time."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from helpers.scored_segments import scored
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bytelm.modalities import MODALITIES
from bytelm.modalities.audio_head import SAMPLE_BYTES
from bytelm.modalities.base import Header, Sample
from bytelm.modalities.image_layout import pixel_positions
from bytelm.modalities.text_classes import CUT, INVALID, PLACES, SCRIPTS, byte_classes, count_words


def named(classes: np.ndarray, names: tuple[str, ...]) -> list[str]:
    return [names[index] for index in classes]


def naive_places(text: bytes) -> list[str]:
    """Python's own decoder makes a surrogate of each byte that is no part of a character."""
    places = []
    for character in text.decode("utf-8", "surrogateescape"):
        length = len(character.encode("utf-8", "surrogateescape"))
        is_invalid = 0xDC80 <= ord(character) <= 0xDCFF
        places += [INVALID] if is_invalid else [f"byte {k + 1} of {length}" for k in range(length)]
    return places


MIXED = st.lists(
    st.one_of(
        st.text(max_size=4).map(lambda s: s.encode("utf-8", "replace")), st.binary(max_size=3)
    )
)


@given(MIXED.map(b"".join))
@example(b"\xed\xa0\x80 \xe0\x80\xaf \xf0\x80\x80\xaf \xf4\x90\x80\x80 \xc0\xaf \xf5\x80 \xe2\x82")
@settings(deadline=None)
def test_places_in_utf8_are_those_of_pythons_decoder(text: bytes) -> None:
    script, place = byte_classes(np.frombuffer(text, np.uint8))
    assert named(place, PLACES) == naive_places(text)
    assert [s == INVALID for s in named(script, SCRIPTS)] == [
        p == INVALID for p in named(place, PLACES)
    ]


@given(st.text())
@settings(deadline=None)
def test_words_are_those_of_split(text: str) -> None:
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    words = text.encode("utf-8", "replace").decode().split()
    assert count_words(byte_classes(data).script) == len(words)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Qé", "Latin"),
        ("Ωά", "Greek"),
        ("Жё", "Cyrillic"),
        ("שָ", "Hebrew"),
        ("سً", "Arabic"),
        ("नि", "Devanagari"),
        ("漢\U00020000", "Han"),
        ("ひ", "Hiragana"),
        ("カ", "Katakana"),
        ("한", "Hangul"),
        ("ᏣᎳ", "other letters"),
        ("7٣Ⅷ", "numbers"),
        (".—、", "punctuation"),
        ("+€\N{COMBINING ACUTE ACCENT}\N{SNAKE}", "symbols and marks"),
        (" \n\t\N{IDEOGRAPHIC SPACE}", "white space"),
        ("\x00\x1b\N{ZERO WIDTH JOINER}", "control characters"),
    ],
)
def test_scripts_are_those_of_unicode(text: str, script: str) -> None:
    data = np.frombuffer(text.encode(), np.uint8)
    assert set(named(byte_classes(data).script, SCRIPTS)) == {script}, unicodedata.name(text[0], "")


@given(st.text(alphabet="aж漢\U0001f40d \n"), st.integers(0, 60))
@settings(deadline=None)
def test_a_character_that_an_edge_cuts_is_neither_invalid_nor_lost(text: str, edge: int) -> None:
    data = np.frombuffer(text.encode(), np.uint8)
    edge = min(edge, len(data))
    before = byte_classes(data[:edge], is_last=edge == len(data))
    after = byte_classes(data[edge:], is_first=edge == 0)
    whole = byte_classes(data)
    scripts = named(np.concatenate([before.script, after.script]), SCRIPTS)
    at_edge = 0 < edge < len(data) and data[edge] & 0xC0 == 0x80
    assert (CUT in scripts) == at_edge
    for seen, expected in zip(scripts, named(whole.script, SCRIPTS), strict=True):
        assert seen in (expected, CUT)
    assert scripts.count(CUT) in ((2, 3, 4) if at_edge else (0,))


def test_bits_of_a_text_go_to_its_scripts_places_and_words() -> None:
    text = "да, sea\n".encode() + b"\xff"
    head = MODALITIES["text"].head(patch=8)
    head.update(scored(text, "utf8", bits=np.arange(1.0, 1 + len(text))))
    maps = {
        bit_map.name: dict(zip(bit_map.labels, bit_map.bits, strict=True))
        for bit_map in head.maps()
    }
    assert maps["script"] == {
        "Latin": 7.0 + 8 + 9,
        "Cyrillic": 1.0 + 2 + 3 + 4,
        "punctuation": 5.0,
        "white space": 6.0 + 10,
        INVALID: 11.0,
    }
    assert maps["utf8_place"] == {
        "byte 1 of 1": 5.0 + 6 + 7 + 8 + 9 + 10,
        "byte 1 of 2": 1.0 + 3,
        "byte 2 of 2": 2.0 + 4,
        INVALID: 11.0,
    }
    assert head.figures()["bits_per_word"] == 66 / 3
    assert head.figures()["bits_per_character"] == 66 / 9


@pytest.mark.parametrize("view", ["raster", "planar", "patch"])
@given(
    width=st.integers(1, 17),
    height=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    patch=st.sampled_from([6, 12, 24, 48]),
    edge=st.floats(0, 1),
)
@settings(deadline=None)
def test_positions_in_the_picture_are_those_of_the_view(
    view: str, width: int, height: int, channels: int, patch: int, edge: float
) -> None:
    """The value of every pixel is its own place in raster order, which each view has to find."""
    header = Header(width, height, channels)
    count = width * height * channels
    data = np.arange(count, dtype=np.uint8).tobytes()  # at most 255
    payload = MODALITIES["image"].to_view(Sample("image", header, data), view, patch)
    start = int(edge * count)
    for offset, stop in ((0, start), (start, count)):
        if offset == stop:
            continue
        line, column, channel, byte = pixel_positions(header, view, patch, offset, stop - offset)
        place = (line * width + column) * channels + channel
        assert np.array_equal(place, payload[offset:stop])
        assert (column < width).all()
        assert not byte.any()


@pytest.mark.parametrize("view", ["raster", "planar", "patch", "deep"])
def test_the_last_bytes_of_the_largest_picture_have_a_place(view: str) -> None:
    """An image of more than 2^33 bytes, of which a row holds the last ones."""
    header = Header(65535, 65535, 3)
    size = 65535 * 65535 * 3 * (2 if view == "deep" else 1)
    line, column, channel, byte = pixel_positions(header, view, 24, size - 2, 2)
    assert line.tolist() == [65534] * 2
    assert column.tolist() == [65534] * 2 if view != "planar" else [65533, 65534]
    assert channel[-1] == 2
    assert byte[-1] == (view == "deep")


def test_bits_of_a_picture_go_to_channels_bytes_and_places() -> None:
    head = MODALITIES["image"].head(patch=8)
    bits = np.zeros((32, 32, 3))
    bits[2:4, 30:32, 1] = 5.0
    head.update(scored(bits.size, "raster", Header(32, 32, 3), bits=bits.reshape(-1)))
    head.update(scored(4, "raster", Header(4, 1, 1), bits=2.0))
    maps = {bit_map.name: bit_map for bit_map in head.maps()}
    assert dict(zip(maps["channel"].labels, maps["channel"].bits, strict=True)) == {
        "grey": 8.0,
        "red": 0.0,
        "green": 20.0,
        "blue": 0.0,
    }
    picture = maps["picture"]
    assert picture.shape == (16, 16)
    grid = np.array(picture.bits).reshape(16, 16)
    assert grid[1, 15] == 20.0
    assert grid[0, [0, 4, 8, 12]].tolist() == [2.0] * 4
    assert picture.labels[31] == "2, 16"
    assert "value_byte" not in maps
    head.update(scored(8, "deep", Header(2, 2, 1), bits=np.array([1.0, 7.0] * 4)))
    (value_byte,) = [m for m in head.maps() if m.name == "value_byte"]
    assert dict(zip(value_byte.labels, value_byte.bits, strict=True)) == {"high": 4.0, "low": 28.0}


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("s16le", {"low": 1.0, "high": 2.0}),
        ("s16be", {"high": 1.0, "low": 2.0}),
        ("s24be", {"high": 1.0, "middle": 2.0, "low": 3.0}),
        ("u8", {"whole sample": 1.0}),
        ("mulaw", {"whole sample": 1.0}),
    ],
)
def test_bits_of_a_sound_go_to_bytes_channels_and_time(
    view: str, expected: dict[str, float]
) -> None:
    """A second and a half of three channels, 16 frames a second; the frame's number is its bits."""
    width, channels, frames = len(expected), 3, 24
    header = Header(channels=channels, rate=16)
    by_byte = np.broadcast_to(np.arange(1.0, width + 1), (frames, channels, width))
    head = MODALITIES["audio"].head(patch=8)
    head.update(scored(by_byte.size, view, header, bits=by_byte.reshape(-1)))
    maps = {m.name: dict(zip(m.labels, m.bits, strict=True)) for m in head.maps()}
    assert maps["sample_byte"] == {name: b * frames * channels for name, b in expected.items()}
    of_frame = sum(expected.values())
    assert maps["channel"] == {str(c + 1): of_frame * frames for c in range(channels)}
    counts = {"0–1/16": 1, "1/16–1/8": 1, "1/8–1/4": 2, "1/4–1/2": 4, "1/2–1": 8, "1–2": 8}
    assert maps["time"] == {f"{label} s": n * channels * of_frame for label, n in counts.items()}
    assert head.figures()["bits_per_sample"] == of_frame


def test_a_piece_far_into_a_sound_has_its_channels_and_its_time() -> None:
    head = MODALITIES["audio"].head(patch=8)
    bits = np.array([1.0, 2.0, 3.0])
    offset = (1 << 32) - 3  # the last byte of a frame comes first
    head.update(scored(3, "s16be", Header(channels=1, rate=48_000), offset=offset, bits=bits))
    maps = {m.name: dict(zip(m.labels, m.bits, strict=True)) for m in head.maps()}
    assert maps["sample_byte"] == {"high": 2.0, "low": 4.0}
    assert maps["time"] == {"1024 s and more": 6.0}


def test_every_view_of_sounds_names_the_bytes_of_its_samples() -> None:
    audio = MODALITIES["audio"]
    assert {view: len(names) for view, names in SAMPLE_BYTES.items()} == audio.view_value_bytes


def test_channels_beyond_the_eighth_share_a_bin() -> None:
    head = MODALITIES["audio"].head(patch=8)
    head.update(scored(255, "u8", Header(channels=255, rate=8000)))
    (channel,) = [m for m in head.maps() if m.name == "channel"]
    assert channel.labels[-1] == "9 and more"
    assert channel.bytes == (*[1] * 8, 247)
