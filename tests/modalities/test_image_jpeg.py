"""JPEG files: damage, harmless oddities, colours, metadata."""

from __future__ import annotations

import io
import struct

import numpy as np
import PIL.Image
import pytest
from helpers.image_files import decode, encoded, noise, outcome, pixels, refusal, smooth

from bytelm.modalities.base import Sample

KINDS: list[dict[str, object]] = [
    {"quality": 90},
    {"quality": 90, "progressive": True},
    {"quality": 90, "restart_marker_rows": 1},
    {"quality": 40, "subsampling": "4:2:0", "optimize": True},
]
PICTURES = [noise(256, 256), smooth()]
END = b"\xff\xd9"


def jpeg(picture: PIL.Image.Image, **options: object) -> bytes:
    return encoded(picture, "JPEG", **options)


# --- damage ---


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("options", KINDS)
def test_a_cut_file_is_refused_with_and_without_an_end_marker(
    picture: PIL.Image.Image, options: dict[str, object]
) -> None:
    data = jpeg(picture, **options)
    for share in (0.3, 0.5, 0.9):
        cut = data[: int(len(data) * share)]
        assert refusal(cut).reason == "truncated"
        assert refusal(cut + END).reason in ("damaged", "truncated")


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("options", KINDS)
def test_a_hole_or_a_missing_piece_is_refused(
    picture: PIL.Image.Image, options: dict[str, object]
) -> None:
    data = jpeg(picture, **options)
    middle = len(data) // 2
    size = len(data) // 6
    hole = data[:middle] + bytes(size) + data[middle + size :]
    assert refusal(hole).reason == "damaged"
    assert refusal(data[:middle] + data[middle + size :]).reason == "damaged"


def test_a_file_without_its_end_marker_has_all_its_pixels() -> None:
    data = jpeg(smooth())
    assert decode(data[:-2]) == decode(data)
    assert decode(data[:-2]).notes == ("no end marker",)
    assert refusal(jpeg(smooth(), progressive=True)[:-2]).reason == "truncated"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("tail", [b"", END])
def test_every_cut_is_refused_or_gives_all_pixels(options: dict[str, object], tail: bytes) -> None:
    data = jpeg(smooth(40, 40), **options)
    whole = decode(data)
    outcomes = [outcome(data[:size] + tail) for size in range(2, len(data) - 1)]
    samples = [sample for sample in outcomes if isinstance(sample, Sample)]
    assert len(samples) <= 2  # those that lack the end marker alone, or a part of it
    assert all(sample == whole for sample in samples)


def test_a_file_cut_in_its_header_is_refused() -> None:
    data = jpeg(smooth())
    for size in (2, 3, 4, 20, 200, 400):
        assert refusal(data[:size]).reason == "truncated"
    assert refusal(data[:20] + END).reason == "truncated"
    assert refusal(data[:2] + END + data[:9]).reason == "damaged"


# --- oddities that are no damage ---


@pytest.mark.parametrize("options", KINDS)
def test_harmless_oddities_change_no_pixel(options: dict[str, object]) -> None:
    data = jpeg(smooth(), **options)
    whole = decode(data)
    scan = data.find(b"\xff\xda")
    adobe = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\7"
    for odd in (
        data + b"a film, as motion photos have it" * 1000,
        data[:2] + b"\0\0" + data[2:],  # bytes between segments
        data[:2] + b"\xff\xff" + data[2:],  # fill bytes
        data[:scan] + bytes(300) + data[scan:],
        data.replace(b"JFIF\0\1", b"JFIF\0\3"),
        data[:2] + adobe + data[2:],  # a colour transform that no one knows
        data[:-2] + bytes(5) + data[-2:],  # padding before the end
        data[:2] + b"\xff\xe1\x00\x08Exif\0\0" + data[2:],
    ):
        assert decode(odd) == whole


def test_wrong_numbers_in_the_scan_of_a_sequential_file_are_no_damage() -> None:
    data = jpeg(smooth())
    scan = data.find(b"\xff\xda")
    end = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4])
    assert decode(data[: end - 3] + bytes(3) + data[end:]) == decode(data)


def test_damage_behind_an_oddity_is_found() -> None:
    data = jpeg(smooth()).replace(b"JFIF\0\1", b"JFIF\0\3")
    assert refusal(data[: len(data) // 2] + END).reason == "damaged"


# --- colours ---


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"subsampling": "4:1:1"},
        {"keep_rgb": True},
        {"progressive": True},
        {"quality": 10},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_libjpeg(options: dict[str, object], mode: str) -> None:
    data = jpeg(smooth(37, 21).convert(mode), **options)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data))).reshape(21, 37, -1)
    assert np.array_equal(pixels(data), expected)
    assert decode(data).notes == ()


def test_cmyk_is_converted_by_the_plain_formula_and_says_so() -> None:
    data = jpeg(smooth(120, 90).convert("CMYK"))
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels(data), expected)
    assert decode(data).notes == ("CMYK without a profile converted by the plain formula",)
    assert refusal(data[: len(data) // 2] + END).reason == "damaged"


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
@pytest.mark.parametrize("transform", [None, 0, 1, 2])
def test_adobes_colour_transform_is_obeyed(mode: str, transform: int | None) -> None:
    data = jpeg(smooth(64, 64).convert(mode))
    marker = data.find(b"\xff\xee")
    if marker >= 0:
        data = data[:marker] + data[marker + 16 :]
    if transform is not None:
        adobe = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
        data = data[:2] + adobe + data[2:]
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels(data), expected)


def test_a_sampling_that_has_no_name_is_decoded_too() -> None:
    data = jpeg(PIL.Image.new("RGB", (16, 16), (128, 128, 128)), subsampling="4:2:0")
    frame, scan = data.find(b"\xff\xc0"), data.find(b"\xff\xda")
    header = data[: frame + 14] + b"\x12" + data[frame + 15 : scan + 14]
    # Blocks without a coefficient in the usual Huffman codes: four of Y, two of Cb, one of Cr.
    bits = "001010" * 4 + "0000" * 3 + "1" * 4
    odd = header + int(bits, 2).to_bytes(5) + END
    assert pixels(odd).shape == (16, 16, 3)
    assert np.unique(pixels(odd)).tolist() == [128]
    assert decode(odd).notes == ("unusual sampling of colours, damage not looked for",)


def test_a_picture_of_several_in_one_file_is_the_first() -> None:
    file = io.BytesIO()
    smooth(40, 30).save(file, "MPO", save_all=True, append_images=[noise(40, 30)])
    expected = np.asarray(PIL.Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    assert np.array_equal(pixels(file.getvalue()), expected)


def test_12_bits_are_refused_by_name() -> None:
    data = jpeg(smooth()).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    assert refusal(data).detail == "a JPEG of 12 bits a sample"


# --- metadata ---

TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


def exif(order: str, number: int, extra: bytes = b"") -> bytes:
    """An EXIF block of an orientation, and one more entry."""
    tag = struct.pack(order + "HHIHH", 0x112, 3, 1, number, 0)
    count = 1 + bool(extra)
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    values = struct.pack(order + "ii", -1, 0)
    return b"Exif\0\0" + start + struct.pack(order + "H", count) + tag + extra + bytes(4) + values


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("number", list(TURNS))
def test_every_orientation_is_applied(order: str, number: int) -> None:
    picture = smooth(24, 8)
    upright = pixels(jpeg(picture))
    turned = pixels(jpeg(picture, exif=exif(order, number)))
    assert np.array_equal(turned, TURNS[number](upright))


def test_an_impossible_number_in_exif_does_not_matter() -> None:
    impossible = struct.pack("<HHII", 0x11A, 10, 1, 38)  # a fraction of -1 by 0
    assert pixels(jpeg(smooth(16, 8), exif=exif("<", 6, impossible))).shape == (16, 8, 3)


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0XX*\0\0\0\0\0",
        exif("<", 9),
        exif("<", 6)[:20],
    ],
)
def test_a_broken_exif_block_is_taken_as_absent(block: bytes) -> None:
    assert pixels(jpeg(smooth(16, 8), exif=block)).shape == (8, 16, 3)
