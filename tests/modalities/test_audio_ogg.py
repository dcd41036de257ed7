"""Ogg: chained links, page checksums, missing end marks, and FLAC in Ogg."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from helpers.sound_files import decode, encoded, media, pcm, refusal, tone

from bytelm.modalities.audio_files.ogg import LAST, Page, page_checksum, read_links

JOINED = "several links joined"
CODECS = {"VORBIS": 16_000, "OPUS": 48_000}


def ogg(codec: str = "VORBIS", frames: int = 30_000, channels: int = 1) -> bytes:
    return encoded(tone(frames, channels), "OGG", codec, CODECS[codec])


def pages(data: bytes) -> list[Page]:
    """The pages of a file of one link and one stream."""
    return read_links(data)[0][0].sound().pages


def changed(page: bytes, field: int, value: bytes) -> bytes:
    """A page with bytes replaced and its checksum made anew."""
    page = page[:field] + value + page[field + len(value) :]
    zeroed = page[:22] + bytes(4) + page[26:]
    return page[:22] + struct.pack("<I", page_checksum(zeroed)) + page[26:]


def without_end_mark(data: bytes) -> bytes:
    last = pages(data)[-1]
    return data[: last.start] + changed(data[last.start :], 5, bytes([last.flags & ~LAST]))


@pytest.mark.parametrize("codec", CODECS)
def test_the_links_of_a_chain_are_joined(codec: str) -> None:
    first, second = ogg(codec), ogg(codec, 8000)
    sample = decode(first + second + first)
    expected = [pcm(decode(part)) for part in (first, second, first)]
    assert [len(part) for part in expected] == [30_000, 8000, 30_000]
    assert np.array_equal(pcm(sample), np.concatenate(expected))
    assert sample.notes == (JOINED,)


def test_links_that_differ_are_refused_with_the_byte() -> None:
    first = ogg()
    assert f"from byte {len(first)} on" in refusal(first + ogg(channels=2)).detail
    assert "Opus, Vorbis" in refusal(first + ogg("OPUS")).detail


@pytest.mark.parametrize("codec", CODECS)
def test_a_missing_end_mark_is_noted(codec: str) -> None:
    sample = decode(without_end_mark(ogg(codec)))
    assert sample == decode(ogg(codec))
    assert sample.notes == ("no end mark",)


@pytest.mark.parametrize("cut", [1, 20, 300])
def test_a_file_that_is_cut_inside_a_page_is_refused(cut: int) -> None:
    assert refusal(ogg()[:-cut]).reason == "truncated"


def test_a_packet_that_the_last_page_does_not_end_is_refused() -> None:
    data = without_end_mark(ogg())
    last = pages(data)[-1]
    (sequence,) = struct.unpack_from("<I", data, last.start + 18)
    page = data[last.start : last.start + 26] + b"\1\xff" + bytes(255)
    page = changed(page, 18, struct.pack("<I", sequence + 1))
    assert refusal(data + page).reason == "truncated"


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_and_missing_pages_are_refused(codec: str) -> None:
    data = ogg(codec, 250_000)
    middle = pages(data)[3]
    flipped = bytearray(data)
    flipped[middle.body + 9] ^= 1
    assert "does not match its checksum" in refusal(bytes(flipped)).detail
    missing = data[: middle.start] + data[middle.end :]
    assert f"missing before byte {middle.start}" in refusal(missing).detail
    assert refusal(data[pages(data)[0].end :]).reason == "truncated"


def test_a_sound_beside_other_streams_is_read_alone() -> None:
    data = ogg()
    mine = [data[page.start : page.end] for page in pages(data)]
    other = [changed(page, 14, struct.pack("<I", 77)) for page in mine]
    pairs = zip(mine[1:], other[1:], strict=True)
    mixed = b"".join([mine[0], other[0], *(page for pair in pairs for page in pair)])
    sample = decode(mixed)
    assert sample == decode(data)
    assert sample.notes == ("other streams left out",)


def test_positions_that_begin_late_lose_no_samples() -> None:
    data = ogg()
    late = b""
    for page in pages(data):
        raw = data[page.start : page.end]
        (position,) = struct.unpack_from("<q", raw, 6)
        late += changed(raw, 6, struct.pack("<q", position + 1_000_000)) if position > 0 else raw
    assert len(pcm(decode(late))) == 30_000


def test_flac_in_ogg_is_read() -> None:
    samples = tone(20_000, 2)
    sample = decode(media("ogg", {"flac": samples}))
    assert np.abs(pcm(sample) / 32768 - samples).max() < 1e-4
    assert sample.header.rate == 48_000


def test_page_checksums_are_those_of_the_bitwise_definition() -> None:
    data = np.random.default_rng(0).bytes(100)
    register = 0
    for byte in data:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1) ^ (0x04C11DB7 if register >> 31 else 0)
            register &= 0xFFFFFFFF
    assert page_checksum(data) == register
