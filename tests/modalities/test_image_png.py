"""PNG files: checksums, transparency, depths, interlacing, metadata."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from helpers.image_files import (
    chunk,
    decode,
    encoded,
    noise,
    on_white,
    outcome,
    pixels,
    png,
    refusal,
    smooth,
    unfiltered,
)

from bytelm.modalities.base import DecodeOptions, Limits, MediaError, Sample
from bytelm.modalities.image import deep_pixels

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


# --- checksums ---


def test_every_flipped_bit_of_the_pixels_is_refused() -> None:
    whole = encoded(smooth(16, 16))
    start = whole.find(b"IDAT") + 4
    size = int.from_bytes(whole[start - 8 : start - 4])
    for position in range(start, start + size + 4):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        error = refusal(bytes(damaged))
        assert error.reason == "damaged"
        assert "IDAT" in error.detail


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
def test_a_wrong_checksum_where_pixels_depend_on_it_is_refused_by_its_name(name: bytes) -> None:
    picture = noise().convert("P")
    data = bytearray(encoded(picture, transparency=3))
    position = data.find(name)
    size = int.from_bytes(data[position - 4 : position])
    data[position + 4 + size] ^= 1
    assert refusal(bytes(data)).detail == f"a wrong checksum in the chunk {name.decode()}"


def test_a_wrong_adler_32_is_refused_where_every_crc_is_right() -> None:
    lines = unfiltered(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    packed = bytearray(zlib.compress(lines))
    packed[-1] ^= 1
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, RGB, 0, 0, 0))
    body = header + chunk(b"IDAT", bytes(packed)) + chunk(b"IEND", b"")
    assert refusal(b"\x89PNG\r\n\x1a\n" + body).reason == "damaged"


@pytest.mark.parametrize("name", [b"tEXt", b"pHYs", b"iCCP", b"gAMA", b"zzZz"])
def test_a_wrong_checksum_in_metadata_does_not_refuse_pixels(name: bytes) -> None:
    lines = b"\0" + bytes([1, 2, 3, 4, 5, 6])
    data = png(2, 1, 8, RGB, lines, before=chunk(name, b"a\0b", crc=1))
    assert pixels(data).ravel().tolist() == [1, 2, 3, 4, 5, 6]


def test_an_unknown_chunk_that_a_decoder_must_know_is_refused() -> None:
    data = png(1, 1, 8, GREY, b"\0\7", before=chunk(b"ABCD", b""))
    assert "unknown chunk ABCD" in refusal(data).detail


def test_pixels_that_end_early_or_have_an_unknown_filter_are_refused() -> None:
    assert refusal(png(4, 4, 8, GREY, bytes(19))).reason == "damaged"
    assert refusal(png(4, 1, 8, GREY, b"\x09" + bytes(4))).reason == "damaged"


def test_bytes_behind_the_end_are_no_damage() -> None:
    data = encoded(noise())
    assert decode(data + b"more" * 100) == decode(data)


def test_every_cut_is_refused_or_gives_all_pixels() -> None:
    data = encoded(noise(20, 10))
    whole = decode(data)
    outcomes = [outcome(data[:size]) for size in range(8, len(data))]
    samples = [sample for sample in outcomes if isinstance(sample, Sample)]
    assert {reason for reason in outcomes if isinstance(reason, str)} == {"truncated"}
    assert all(sample == whole and sample.notes == ("no end marker",) for sample in samples)
    assert len(samples) == 12  # those that lack a part of the last chunk alone


# --- transparency ---


def test_a_transparent_colour_of_16_bits_is_compared_with_all_16() -> None:
    values = [0x1234, 0x3456, 0x1235]
    rgb = np.array([[[v, v, v] for v in values]], np.uint16)
    trns = chunk(b"tRNS", struct.pack(">HHH", *[0x1234] * 3))
    decoded = pixels(png(3, 1, 16, RGB, unfiltered(rgb), before=trns))
    assert decoded[0].tolist() == [[255] * 3, [0x34] * 3, [0x12] * 3]
    trns = chunk(b"tRNS", struct.pack(">H", 0x1234))
    decoded = pixels(png(3, 1, 16, GREY, unfiltered(rgb[:, :, :1]), before=trns))
    assert decoded[0, :, 0].tolist() == [255, 0x34, 0x12]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_is_compared_in_those_bits(bits: int) -> None:
    levels = 1 << bits
    values = np.arange(min(levels, 8))
    packed = int("".join(f"{v:0{bits}b}" for v in values).ljust(64, "0"), 2).to_bytes(8)
    line = packed[: (len(values) * bits + 7) // 8]
    trns = chunk(b"tRNS", struct.pack(">H", 1))
    decoded = pixels(png(len(values), 1, bits, GREY, b"\0" + line, before=trns))
    expected = [255 if v == 1 else v * 255 // (levels - 1) for v in values]
    assert decoded[0, :, 0].tolist() == expected


def test_a_transparent_colour_of_8_bits_leaves_its_neighbours() -> None:
    rgb = np.array([[[9, 8, 7], [9, 8, 6]]], np.uint8)
    trns = chunk(b"tRNS", struct.pack(">HHH", 9, 8, 7))
    decoded = pixels(png(2, 1, 8, RGB, unfiltered(rgb), before=trns))
    assert decoded[0].tolist() == [[255, 255, 255], [9, 8, 6]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_may_be_transparent_in_part(bits: int) -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60])) + chunk(b"tRNS", b"\0")
    line = {1: 0b01000000, 2: 0b00010000, 4: 0b00000001, 8: 0}[bits]
    lines = bytes([0, line]) + (b"\1" if bits == 8 else b"")
    decoded = pixels(png(2, 1, bits, PALETTE, lines, before=palette))
    assert decoded[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize(("colour_type", "values"), [(GREY_ALPHA, 2), (RGBA, 4)])
def test_alpha_of_16_bits_is_laid_on_white(colour_type: int, values: int) -> None:
    samples = np.full((1, 3, values), 0x8000, np.uint16)
    samples[0, :, -1] = [0, 0x8000, 0xFFFF]
    decoded = pixels(png(3, 1, 16, colour_type, unfiltered(samples)))
    assert decoded[0, :, 0].tolist() == [255, pytest.approx(191, abs=1), 128]
    assert decoded.shape[2] == (1 if values == 2 else 3)


# --- depths ---


def samples_of(data: bytes) -> np.ndarray:
    sample = decode(data, DecodeOptions(keep_depth=True))
    assert sample.is_deep
    return deep_pixels(sample)


@pytest.mark.parametrize("colour_type", [GREY, RGB, GREY_ALPHA, RGBA])
@pytest.mark.parametrize("band", [1 << 20, 50])
def test_all_16_bits_are_at_hand(
    colour_type: int, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytelm.modalities.image_files.decoded_image.BAND_PIXELS", band)
    values = {GREY: 1, RGB: 3, GREY_ALPHA: 2, RGBA: 4}[colour_type]
    samples = np.random.default_rng(0).integers(0, 1 << 16, (9, 13, values), np.uint16)
    lines = samples.astype(">u2").view(np.uint8).reshape(9, -1).astype(np.int64)
    step = 2 * values
    left = np.pad(lines, ((0, 0), (step, 0)))[:, :-step]
    above = np.pad(lines, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(left, ((1, 0), (0, 0)))[:-1]
    nearest = np.stack([left, above, corner])
    order = np.abs(nearest - (left + above - corner)).argmin(axis=0)
    paeth = np.take_along_axis(nearest, order[None], axis=0)[0]
    guesses = [0 * lines, left, above, (left + above) // 2, paeth]
    filtered = b"".join(
        bytes([y % 5]) + (lines[y] - guesses[y % 5][y]).astype(np.uint8).tobytes() for y in range(9)
    )
    data = png(13, 9, 16, colour_type, filtered)
    assert np.array_equal(samples_of(data), on_white(samples))
    sample = decode(data)
    assert sample.notes == ("16 bits kept as 8",)


def test_a_note_says_where_few_levels_are_left() -> None:
    low = np.random.default_rng(0).integers(0, 4096, (32, 32, 1), np.uint16)
    sample = decode(png(32, 32, 16, GREY, unfiltered(low)))
    assert max(sample.data) == 15
    assert sample.notes == ("16 bits kept as 8", "few levels left (12-bit data in 16 bits?)")
    flat = np.full((4, 4, 1), 700, np.uint16)  # nothing is lost here
    assert decode(png(4, 4, 16, GREY, unfiltered(flat))).notes == ("16 bits kept as 8",)


def test_a_transparent_colour_and_an_orientation_keep_16_bits() -> None:
    values = np.array([[[0x1234], [0x1235]]], np.uint16)
    exif = b"MM\0*" + struct.pack(">IH", 8, 1) + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
    before = chunk(b"tRNS", b"\x12\x34") + chunk(b"eXIf", exif + bytes(4))
    assert samples_of(png(2, 1, 16, GREY, unfiltered(values), before)).tolist() == [
        [[0xFFFF]],
        [[0x1235]],
    ]


def test_images_of_8_bits_are_not_deep() -> None:
    data = encoded(noise())
    assert decode(data, DecodeOptions(keep_depth=True)) == decode(data)
    assert not decode(data, DecodeOptions(keep_depth=True)).is_deep


def test_a_limit_holds_for_16_bits() -> None:
    data = png(10, 10, 16, GREY, unfiltered(np.zeros((10, 10, 1), np.uint16)))
    limits = Limits(max_bytes=150)
    assert decode(data, DecodeOptions(limits=limits))
    with pytest.raises(MediaError, match="over the limit"):
        decode(data, DecodeOptions(limits=limits, keep_depth=True))


@pytest.mark.parametrize(("colour_type", "values"), [(GREY, 1), (RGB, 3)])
def test_significant_bits_move_low_data_up(colour_type: int, values: int) -> None:
    low = np.random.default_rng(0).integers(0, 4096, (32, 32, values), np.uint16)
    sbit = chunk(b"sBIT", bytes([12] * values))
    decoded = pixels(png(32, 32, 16, colour_type, unfiltered(low), before=sbit))
    assert np.array_equal(decoded, low >> 4)
    high = unfiltered(low << 4)  # as the specification has it
    decoded = pixels(png(32, 32, 16, colour_type, high, before=sbit))
    assert np.array_equal(decoded, low >> 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (40, 30)])
def test_every_mode_is_decoded_as_pillow_does(mode: str, size: tuple[int, int]) -> None:
    picture = noise(*size).convert("L" if mode == "I;16" else mode).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(255)
    data = encoded(picture)
    wanted = "L" if mode in ("1", "L", "LA") else "RGB"
    if mode == "I;16":
        expected = (np.asarray(picture) >> 8)[:, :, None]
    else:
        expected = np.asarray(picture.convert(wanted)).reshape(size[1], size[0], -1)
    assert np.array_equal(pixels(data), expected)


PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
PASSES.append((0, 1, 1, 2))


SMALL = [(kind, bits) for kind in (GREY, PALETTE) for bits in (1, 2, 4, 8)]
WIDE = [(kind, bits) for kind in (GREY, RGB, GREY_ALPHA, RGBA) for bits in (8, 16)]


@pytest.mark.parametrize(("colour_type", "bits"), sorted({*SMALL, *WIDE}))
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 11)])
def test_interlaced_pixels_are_those_of_the_plain_file(
    colour_type: int, bits: int, size: tuple[int, int]
) -> None:
    values = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}[colour_type]
    width, height = size
    samples = np.random.default_rng(0).integers(0, 1 << bits, (height, width, values))

    def lines(part: np.ndarray) -> bytes:
        if bits >= 8:
            return unfiltered(part.astype(np.uint16 if bits == 16 else np.uint8))
        unpacked = (part[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)
        packed = np.packbits(unpacked.reshape(len(part), -1), axis=1)
        return b"".join(b"\0" + line.tobytes() for line in packed)

    parts = [samples[y::dy, x::dx] for x, y, dx, dy in PASSES]
    interlaced = b"".join(lines(part) for part in parts if part.size)
    palette = np.random.default_rng(1).bytes(3 << min(bits, 8))
    before = chunk(b"PLTE", palette) if colour_type == PALETTE else b""
    plain = png(width, height, bits, colour_type, lines(samples), before)
    data = png(width, height, bits, colour_type, interlaced, before, interlace=1)
    assert decode(data) == decode(plain)
    with PIL.Image.open(io.BytesIO(plain)) as image:
        assert image.size == size


# --- metadata ---


@pytest.mark.parametrize("place", ["eXIf", "raw profile", "xmp"])
def test_an_orientation_is_applied(place: str) -> None:
    tag = struct.pack("<HHI", 0x112, 3, 1) + struct.pack("<HH", 6, 0)
    exif = b"II*\0" + struct.pack("<IH", 8, 1) + tag + bytes(4)
    if place == "eXIf":
        before = chunk(b"eXIf", exif)
    elif place == "raw profile":
        text = f"\nexif\n{len(exif) + 6:8}\n{(b'Exif' + bytes(2) + exif).hex()}\n".encode()
        before = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    else:
        xmp = b'<x tiff:Orientation="6"/>'
        before = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    rgb = np.random.default_rng(0).integers(0, 256, (2, 4, 3), np.uint8)
    decoded = pixels(png(4, 2, 8, RGB, unfiltered(rgb), before))
    assert np.array_equal(decoded, np.rot90(rgb, -1))


def test_broken_metadata_are_taken_as_absent() -> None:
    for name, content in (
        (b"eXIf", b"II*\0\xff\xff\xff\xff"),
        (b"eXIf", b"MM\0*"),
        (b"zTXt", b"Raw profile type exif\0\0not zlib"),
        (b"tEXt", b"Raw profile type exif\0\nexif\n 9\nzz"),
        (b"iTXt", b""),
        (b"sBIT", b""),
    ):
        data = png(1, 1, 8, RGB, b"\0\1\2\3", chunk(name, content))
        assert pixels(data).ravel().tolist() == [1, 2, 3]


def test_apples_own_form_is_refused_by_its_name() -> None:
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", bytes(4)) + encoded(noise())[8:]
    assert "CgBI" in refusal(data).detail
