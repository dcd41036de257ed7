"""ICC profiles: colours become sRGB, and a broken profile never refuses pixels."""

from __future__ import annotations

import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from helpers.image_files import decode, encoded, noise, pixels, smooth

CONVERTED = "converted to sRGB by the file's colour profile"
BROKEN = "colours taken as they are, the profile cannot be used"
SRGB = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()


def profile(space: bytes, primaries: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """An ICC profile, version 2, of a matrix and a gamma; or of a gamma alone for grey."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, values in zip(b"rgb", primaries, strict=True):
            tags[bytes([name]) + b"XYZ"] = xyz(values)
            tags[bytes([name]) + b"TRC"] = curve
    return container(space, b"XYZ ", tags)


def container(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of tags."""
    position = 128 + 4 + 12 * len(tags)
    table, contents = b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", position + len(contents), len(content))
        contents += content + bytes(-len(content) % 4)
    size = position + len(contents)
    kind = b"prtr" if connection == b"Lab " else b"mntr"
    header = struct.pack(">I4xI4s4s4s", size, 0x02400000, kind, space, connection)
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp").ljust(32, b"\0")
    white = struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    start = (header + bytes(12) + white).ljust(128, b"\0")
    return start + struct.pack(">I", len(tags)) + table + contents


# The primaries of Adobe RGB (1998), adapted to D50.
WIDE = profile(
    b"RGB ",
    ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
    2.2,
)
GREY = profile(b"GRAY", (), 1.0)


def ink_profile() -> bytes:
    """An ICC profile of CMYK whose inks are all grey: a table (`mft1`) of two levels of each."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(16, 4)
    light = np.rint(255 * (1 - inks[:, 3]) * (1 - inks[:, :3].mean(axis=1))).astype(np.uint8)
    lab = np.stack([light, np.full(16, 128), np.full(16, 128)], -1).astype(np.uint8)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + lab.tobytes() + ramp * 3
    return container(b"CMYK", b"Lab ", {b"A2B0": table})


def converted(picture: PIL.Image.Image, icc: bytes) -> np.ndarray:
    """[h w c] of a picture after its conversion to sRGB by Pillow."""
    source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(icc))
    target = PIL.ImageCms.createProfile("sRGB")
    result = PIL.ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    assert result is not None
    return np.asarray(result)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_wide_profile_is_converted(kind: str) -> None:
    data = encoded(smooth(40, 30), kind, icc_profile=WIDE)
    plain = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    expected = converted(PIL.Image.fromarray(plain), WIDE)
    assert np.abs(expected.astype(int) - plain).max() > 5
    assert np.array_equal(pixels(data), expected)
    assert decode(data).notes == (CONVERTED,)


def test_pure_colours_of_a_wide_profile_are_clipped_to_those_of_srgb() -> None:
    data = encoded(PIL.Image.new("RGB", (2, 2), (0, 255, 0)), icc_profile=WIDE)
    assert pixels(data)[0, 0].tolist() == pytest.approx([0, 255, 0], abs=3)
    data = encoded(PIL.Image.new("RGB", (2, 2), (200, 100, 100)), icc_profile=WIDE)
    red, green, blue = pixels(data)[0, 0].tolist()
    assert red > 215
    assert green == pytest.approx(98, abs=4)
    assert blue == pytest.approx(99, abs=4)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_the_profile_of_srgb_changes_nothing(mode: str) -> None:
    picture = noise(40, 30, mode)
    assert decode(encoded(picture, icc_profile=SRGB)) == decode(encoded(picture))
    assert decode(encoded(picture, icc_profile=SRGB)).notes == ()


def test_grey_is_converted_by_a_grey_profile_and_stays_grey() -> None:
    sample = decode(encoded(PIL.Image.new("L", (2, 2), 55), icc_profile=GREY))
    assert sample.header.channels == 1
    assert sample.data[0] == pytest.approx(127, abs=2)  # 55 / 255 linear is 127 / 255 in sRGB
    assert sample.notes == (CONVERTED,)
    sample = decode(encoded(PIL.Image.new("LA", (2, 2), (55, 255)), icc_profile=GREY))
    assert sample.data[0] == pytest.approx(127, abs=2)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_alpha_and_palettes_are_converted_too(mode: str) -> None:
    picture = noise(40, 30).convert(mode)
    if mode == "RGBA":
        picture.putpixel((0, 0), (0, 0, 0, 0))
    data = encoded(picture, icc_profile=WIDE)
    expected = converted(picture.convert("RGB"), WIDE).copy()
    if mode == "RGBA":
        expected[0, 0] = 255
    assert np.array_equal(pixels(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("icc", [b"no profile", SRGB[:200], bytes(500), GREY])
def test_a_broken_profile_or_one_of_other_pixels_gives_a_note(kind: str, icc: bytes) -> None:
    sample = decode(encoded(noise(), kind, icc_profile=icc))
    assert sample == decode(encoded(noise(), kind))
    assert sample.notes == (BROKEN,)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(kind: str) -> None:
    data = encoded(PIL.Image.new("CMYK", (8, 8), (90, 90, 90, 0)), kind, icc_profile=ink_profile())
    level = 151  # in sRGB, of the lightness 100 (1 - 90 / 255)
    assert pixels(data)[0, 0].tolist() == pytest.approx([level] * 3, abs=6)
    assert np.ptp(pixels(data)[0, 0]) <= 2
    assert decode(data).notes == (CONVERTED,)
    plain = encoded(PIL.Image.new("CMYK", (8, 8), (90, 90, 90, 0)), kind)
    assert pixels(plain)[0, 0].tolist() == pytest.approx([165] * 3, abs=2)


def test_the_profile_of_a_bmp_is_applied() -> None:
    pixel_bytes = bytes([30, 200, 90, 0])
    header = struct.pack("<IiiHHIIiiII", 124, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)
    header += bytes(16) + b"DEBM" + bytes(52) + struct.pack("<III", 124 + 4, len(WIDE), 0)
    size = 14 + 124 + 4 + len(WIDE)
    data = b"BM" + struct.pack("<IHHI", size, 0, 0, 138) + header + pixel_bytes + WIDE
    picture = PIL.Image.new("RGB", (1, 1), (90, 200, 30))
    assert np.array_equal(pixels(data), pixels(encoded(picture, icc_profile=WIDE)))
    assert decode(data).notes == (CONVERTED,)
