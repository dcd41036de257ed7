"""TIFF files."""

from __future__ import annotations

import io
import struct

import numpy as np
import PIL.Image
import pytest
from helpers.image_files import (
    IMAGE,
    decode,
    encoded,
    noise,
    on_white,
    outcome,
    pixels,
    refusal,
    smooth,
)

from bytelm.modalities.base import DecodeOptions
from bytelm.modalities.image import deep_pixels

RNG = np.random.default_rng(0)


def tiff(samples: np.ndarray, photometric: int, order: str = "<", **tags: object) -> bytes:
    """A TIFF of one strip of [h w v], or a strip for each value where tags have PLANES=2.

    A tag, T and its number, has a list of values, or None to leave it out.
    """
    height, width, values = samples.shape
    planes = tags.pop("PLANES", 1)
    body = samples.astype(samples.dtype.newbyteorder(order))
    strips = [body.tobytes()]
    if planes == 2:
        strips = [body[:, :, i].tobytes() for i in range(values)]
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    bits = samples.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    entries: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [bits] * values,
        259: [1],
        262: [photometric],
        273: starts,
        277: [values],
        278: [height],
        279: [len(s) for s in strips],
        284: [planes],  # type: ignore[list-item]
        339: [kind] * values,
    }
    entries |= {int(name[1:]): value for name, value in tags.items()}  # type: ignore[misc]
    entries = {tag: values for tag, values in entries.items() if values}
    start = 8 + sum(map(len, strips))
    extra = start + 2 + 12 * len(entries) + 4
    table, outside = b"", b""
    for tag in sorted(entries):
        packed = struct.pack(f"{order}{len(entries[tag])}I", *entries[tag])
        if len(packed) > 4:
            outside += packed
            packed = struct.pack(order + "I", extra + len(outside) - len(packed))
        table += struct.pack(order + "HHI", tag, 4, len(entries[tag])) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    count = struct.pack(order + "H", len(entries))
    return head + b"".join(strips) + count + table + bytes(4) + outside


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits", "zstd"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_and_compression(mode: str, compression: str | None) -> None:
    picture = noise(40, 30, mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(255)
    data = encoded(picture, "TIFF", compression=compression)
    assert IMAGE.recognises(data)
    wanted = "L" if mode in ("1", "L", "LA") else "RGB"
    expected = np.asarray(picture.convert(wanted)).reshape(30, 40, -1)
    assert np.array_equal(pixels(data), expected)


def test_fax_and_jpeg_in_a_tiff() -> None:
    picture = noise(40, 30, "1")
    for compression in ("group3", "group4"):
        data = encoded(picture, "TIFF", compression=compression)
        assert np.array_equal(pixels(data)[:, :, 0], np.asarray(picture.convert("L")))
    data = encoded(smooth(), "TIFF", compression="jpeg", quality=95)
    assert np.abs(pixels(data).astype(int) - np.asarray(smooth())).mean() < 4


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("values", [1, 3])
@pytest.mark.parametrize("bits", [8, 16])
def test_orders_of_bytes_and_planes(order: str, planes: int, values: int, bits: int) -> None:
    dtype = np.uint8 if bits == 8 else np.uint16
    samples = RNG.integers(0, 1 << bits, (7, 9, values), dtype)
    data = tiff(samples, 2 if values == 3 else 1, order, PLANES=planes)
    assert np.array_equal(pixels(data), samples >> (bits - 8))
    assert decode(data).notes == (("16 bits kept as 8",) if bits == 16 else ())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("values", [1, 3, 4])
def test_all_16_bits_are_at_hand(order: str, values: int) -> None:
    samples = RNG.integers(0, 1 << 16, (7, 9, values), np.uint16)
    extra: dict[str, object] = {"T338": [2]} if values == 4 else {}
    data = tiff(samples, 1 if values == 1 else 2, order, **extra)
    sample = decode(data, DecodeOptions(keep_depth=True))
    assert sample.is_deep
    assert np.array_equal(deep_pixels(sample), on_white(samples) if values == 4 else samples)


def test_large_files_have_another_layout() -> None:
    picture = noise()
    data = encoded(picture, "TIFF", big_tiff=True)
    assert IMAGE.recognises(data)
    assert np.array_equal(pixels(data), np.asarray(picture))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiles_are_put_together(dtype: type) -> None:
    samples = RNG.integers(0, 256, (20, 40, 3)).astype(dtype)
    tiles = np.pad(samples, ((0, 12), (0, 8), (0, 0))).reshape(2, 16, 3, 16, 3).swapaxes(1, 2)
    size = tiles[0, 0].nbytes
    data = tiff(
        tiles.reshape(6 * 16, 16, 3),
        2,
        T256=[40],
        T257=[20],
        T322=[16],
        T323=[16],
        T324=[8 + i * size for i in range(6)],
        T325=[size] * 6,
        T273=None,
        T278=None,
        T279=None,
    )
    assert np.array_equal(pixels(data), samples >> (8 if dtype == np.uint16 else 0))


def test_white_may_be_zero() -> None:
    eight = np.array([[[0], [7], [255]]], np.uint8)
    assert pixels(tiff(eight, 0)).ravel().tolist() == [255, 248, 0]
    sixteen = np.array([[[0], [0x1234], [0xFFFF]]], np.uint16)
    assert pixels(tiff(sixteen, 0)).ravel().tolist() == [255, 0xED, 0]


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_orientation_is_applied(number: int, dtype: type) -> None:
    samples = RNG.integers(0, 256, (4, 6, 3)).astype(dtype)
    turns = {
        1: samples,
        2: samples[:, ::-1],
        3: samples[::-1, ::-1],
        4: samples[::-1],
        5: samples.transpose(1, 0, 2),
        6: np.rot90(samples, -1),
        7: samples[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(samples, 1),
    }
    if dtype == np.uint16:
        samples <<= 8
        turns = {key: turned >> 8 for key, turned in turns.items()}
    assert np.array_equal(pixels(tiff(samples, 2, T274=[number])), turns[number])


def test_the_first_page_of_several_is_taken_and_said() -> None:
    pages = [PIL.Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]
    assert decode(data).notes == ("first of several pictures",)


@pytest.mark.parametrize("values", [1, 3])
def test_pixels_that_have_no_range_are_refused_by_name(values: int) -> None:
    photometric = 1 if values == 1 else 2
    for dtype, word in (("f4", "floating-point"), ("i2", "signed"), ("u4", "32 bits")):
        data = tiff(np.zeros((2, 2, values), dtype), photometric)
        assert word in refusal(data).detail


def test_pixels_behind_the_end_of_the_file_are_truncated() -> None:
    data = tiff(np.zeros((9, 9, 1), np.uint8), 1, T279=[9999])
    assert outcome(data) == "truncated"
    whole = encoded(noise(), "TIFF")
    with PIL.Image.open(io.BytesIO(whole)):
        assert outcome(whole[:-1]) == "truncated"
        assert outcome(whole[:100]) == "truncated"


def test_a_large_tiff_is_refused_by_its_directory() -> None:
    data = tiff(np.zeros((1, 1, 3), np.uint8), 2, T256=[50_000], T257=[50_000])
    assert outcome(data) == "over the limit"


def test_sixteen_bit_planes_are_read_as_eight_with_a_note() -> None:
    for samples, photometric in ((colours(np.uint16, 3), 2), (colours(np.uint16, 4), 5)):
        planes = 2 if photometric == 2 else 1
        sample = decode(tiff(samples, photometric, PLANES=planes), DecodeOptions(keep_depth=True))
        assert not sample.is_deep
        assert sample.notes[0] == "16 bits kept as 8"
        eight = tiff((samples >> 8).astype(np.uint8), photometric, PLANES=planes)
        assert sample.data == decode(eight).data


def test_forms_that_pillow_mistakes_or_lacks_are_refused_with_their_form() -> None:
    grey_alpha = colours(np.uint8, 2)
    assert "in planes" in refusal(tiff(grey_alpha, 1, PLANES=2, T338=[2])).detail
    assert pixels(tiff(grey_alpha, 1, T338=[2])).shape == (*grey_alpha.shape[:2], 1)
    error = refusal(tiff(colours(np.uint16, 2), 1, T338=[2]))
    assert error.detail == "Pillow reads no TIFF of 16+16 bits, photometric 1, compression 1"


def colours(kind: type[np.unsignedinteger], values: int) -> np.ndarray:
    """[h w v] random samples."""
    return RNG.integers(0, np.iinfo(kind).max, (6, 7, values), kind, endpoint=True)
