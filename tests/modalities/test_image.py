"""Images: decoding, refusals, views and their inverses, files."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers.image_files import DEFAULTS, decode, encoded, noise
from helpers.mutants import images
from helpers.scored_segments import scored
from helpers.sets import image
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, Header, Limits, MediaError, Sample

IMAGE = MODALITIES["image"]
FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "PPM": "ppm"}


def png(width: int, height: int) -> bytes:
    """A PNG whose header gives a size that its data do not have."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"abc")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def pixels(sample: Sample) -> np.ndarray:
    h = sample.header
    return np.frombuffer(sample.data, np.uint8).reshape(h.height, h.width, h.channels)


def reason(data: bytes, options: DecodeOptions = DEFAULTS) -> str:
    with pytest.raises(MediaError) as error:
        decode(data, options)
    assert "0x" not in error.value.detail, "an address in memory is no detail"
    return error.value.reason


# --- decoding ---


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_decoded_as_pillow_does(kind: str) -> None:
    data = encoded(noise(), kind)
    assert IMAGE.recognises(data[:4096])
    with PIL.Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    sample = decode(data)
    assert sample.header == Header(width=40, height=30, channels=3)
    assert np.array_equal(pixels(sample), expected)


def test_grey_stays_one_channel() -> None:
    grey = noise().convert("L")
    sample = decode(encoded(grey))
    assert sample.header.channels == 1
    assert IMAGE.member_suffix(sample) == "gray"
    assert np.array_equal(pixels(sample)[:, :, 0], np.asarray(grey))
    assert pixels(decode(encoded(grey.convert("1"))))[0, 0, 0] in (0, 255)


def test_sixteen_bits_become_the_upper_eight() -> None:
    deep = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    expected = [0, 0, 1, 128, 255]
    assert pixels(decode(encoded(PIL.Image.fromarray(deep)))).ravel().tolist() == expected
    pgm = b"P5 5 1 65535\n" + deep.astype(">u2").tobytes()
    assert pixels(decode(pgm)).ravel().tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    picture = PIL.Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "LA":
        data = encoded(picture.convert("LA"))
    elif mode == "P":
        palette = PIL.Image.new("P", (2, 1))
        palette.putpalette([0, 0, 0, 10, 20, 30])
        palette.putpixel((1, 0), 1)
        data = encoded(palette, transparency=1)
    else:
        data = encoded(picture)
    decoded = pixels(decode(data))
    assert decoded.shape[2] == (1 if mode == "LA" else 3)
    assert decoded[0, 0].max() == 0
    assert decoded[0, 1].min() == 255


def test_half_transparent_is_mixed_with_white() -> None:
    decoded = pixels(decode(encoded(PIL.Image.new("RGBA", (1, 1), (0, 100, 255, 128)))))
    assert decoded[0, 0] == pytest.approx([127, 177, 255], abs=1)


def test_the_white_ground_is_composited_as_pillow_does() -> None:
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    levels = np.stack([value, 255 - value, value[::-1], alpha], axis=-1).astype(np.uint8)
    picture = PIL.Image.fromarray(levels)
    white = PIL.Image.new("RGBA", picture.size, (255, 255, 255, 255))
    expected = PIL.Image.alpha_composite(white, picture).convert("RGB")
    assert decode(encoded(picture)).data == expected.tobytes()


def test_bands_join_to_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [data for _, data in images(np.random.default_rng(0))]
    whole = [decode(data) for data in files]
    monkeypatch.setattr(
        "bytelm.modalities.image_files.decoded_image.BAND_PIXELS", 170
    )  # three lines of fifty
    assert [decode(data) for data in files] == whole


def test_the_exif_orientation_is_applied() -> None:
    picture = noise(4, 2)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    sample = decode(encoded(picture, exif=exif.tobytes()))
    assert sample.header == Header(width=2, height=4, channels=3)
    assert np.array_equal(pixels(sample), np.rot90(np.asarray(picture), -1))


def test_only_the_first_frame_is_taken() -> None:
    frames = [PIL.Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    decoded = pixels(decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert decoded[0, 0].tolist() == [255, 0, 0]


# --- refusals ---


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_are_refused(kind: str) -> None:
    data = encoded(noise(), kind)
    assert reason(data[: len(data) // 2]) == "truncated"
    assert reason(data[:20]) in ("truncated", "unreadable")


def test_an_image_of_no_pixels_is_refused() -> None:
    assert reason(png(0, 7)) == "empty"


def test_a_bomb_is_refused_from_its_header() -> None:
    tracemalloc.start()
    assert reason(png(50_000, 50_000)) == "over the limit"
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_limits_hold() -> None:
    data = encoded(noise(40, 30))
    assert reason(data, DecodeOptions(limits=Limits(max_side=39))) == "over the limit"
    assert reason(data, DecodeOptions(limits=Limits(max_bytes=3599))) == "over the limit"
    assert decode(data, DecodeOptions(limits=Limits(max_side=40, max_bytes=3600)))


def test_postscript_and_garbage_are_refused() -> None:
    assert reason(encoded(noise(), "EPS")) == "unreadable"
    assert reason(b"\x89PNG\r\n\x1a\n" + bytes(100)) == "unreadable"


@pytest.mark.parametrize(
    "start", [b"BMW is a make of cars, in Munich", b"P5 is a name", b"GIF89 or not", b"\xff\xd8"]
)
def test_files_that_only_begin_like_an_image_are_none(start: bytes) -> None:
    assert not IMAGE.recognises(start)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255))))
def test_mutated_files_are_decoded_or_refused(kind: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(noise(12, 9), kind))
    for share, value in changes:
        data[int(share * (len(data) - 1))] = value
    try:
        sample = decode(bytes(data), DecodeOptions(limits=Limits(max_bytes=1 << 20)))
    except MediaError:
        return
    assert len(sample.data) == pixels(sample).size > 0


# --- views ---


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 70) | st.integers(1, 640),
    height=st.integers(1, 70) | st.integers(1, 640),
    channels=st.sampled_from([1, 3]),
    patch=st.sampled_from([3, 6, 12, 48, 192, 768]),
    seed=st.integers(0, 1000),
)
def test_every_view_can_be_turned_back(
    width: int, height: int, channels: int, patch: int, seed: int
) -> None:
    sample = image(width, height, channels, seed)
    for view in ("raster", "planar", "patch"):
        payload = IMAGE.to_view(sample, view, patch)
        assert payload.dtype == np.uint8
        assert payload.shape == (IMAGE.payload_size(len(sample.data), view),)
        assert IMAGE.from_view(sample.header, payload, view, patch) == sample


@pytest.mark.parametrize(("width", "height"), [(1, 1), (640, 640), (1, 640), (640, 1)])
@pytest.mark.parametrize("view", ["raster", "planar", "patch"])
def test_extreme_sizes_can_be_turned_back(width: int, height: int, view: str) -> None:
    sample = image(width, height)
    payload = IMAGE.to_view(sample, view, 192)
    assert IMAGE.from_view(sample.header, payload, view, 192) == sample


def test_planar_has_one_channel_after_the_other() -> None:
    sample = image(5, 4)
    planes = IMAGE.to_view(sample, "planar", 8).reshape(3, 4, 5)
    assert np.array_equal(planes[2], pixels(sample)[:, :, 2])


@pytest.mark.parametrize(
    ("channels", "patch", "lines", "columns"),
    [(3, 192, 8, 8), (3, 12, 2, 2), (1, 192, 12, 16), (1, 8, 2, 4), (3, 3, 1, 1), (1, 7, 1, 7)],
)
def test_each_whole_tile_fills_a_patch(channels: int, patch: int, lines: int, columns: int) -> None:
    sample = image(columns * 3 + (columns > 1), lines * 2 + (lines > 1), channels)
    payload = IMAGE.to_view(sample, "patch", patch)
    canvas = pixels(sample)
    for tile in range(6):
        y, x = tile // 3 * lines, tile % 3 * columns
        expected = canvas[y : y + lines, x : x + columns].reshape(-1)
        assert np.array_equal(payload[tile * patch : (tile + 1) * patch], expected)
    right = canvas[: 2 * lines, 3 * columns :].reshape(-1)
    bottom = canvas[2 * lines :].reshape(-1)
    assert np.array_equal(payload[6 * patch :], np.concatenate([right, bottom]))


def test_a_patch_that_holds_no_whole_pixels_is_an_error() -> None:
    for attempt in (
        lambda: IMAGE.to_view(image(9, 9), "patch", 8),
        lambda: IMAGE.check_view("patch", 3, 8),
    ):
        with pytest.raises(ValueError, match=r"multiple of 3.*'raster' or 'planar'"):
            attempt()
    IMAGE.check_view("patch", 1, 8)
    IMAGE.check_view("raster", 3, 8)


def test_a_payload_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="header says 2 x 2 x 3"):
        IMAGE.from_view(Header(width=2, height=2, channels=3), np.zeros(11, np.uint8), "raster", 8)


# --- files ---


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_is_written_as_png(tmp_path: Path, channels: int) -> None:
    sample = image(7, 5, channels)
    path = IMAGE.write_file(sample, tmp_path / "picture")
    assert path.name == "picture.png"
    assert decode(path.read_bytes()) == sample


@pytest.mark.parametrize("kind", FORMATS)
def test_raw_files_keep_their_bytes(tmp_path: Path, kind: str) -> None:
    data = encoded(noise(), kind)
    sample = decode(data, DecodeOptions(keep_files=True))
    assert sample == Sample("image", Header(width=40, height=30, channels=3), data, is_file=True)
    assert IMAGE.member_suffix(sample) == "bin"
    payload = IMAGE.to_view(sample, "file", 8)
    assert payload.tobytes() == data
    assert IMAGE.payload_size(len(data), "file") == len(data)
    assert IMAGE.from_view(sample.header, payload, "file", 8) == sample
    path = IMAGE.write_file(sample, tmp_path / "x")
    assert path.name == f"x.{FORMATS[kind]}"
    assert path.read_bytes() == data
    with pytest.raises(ValueError, match="choose the view 'file'"):
        IMAGE.to_view(sample, "raster", 8)
    with pytest.raises(ValueError, match="choose another view"):
        IMAGE.to_view(image(2, 2), "file", 8)


def test_bits_per_pixel_count_grey_and_colour_alike() -> None:
    head = IMAGE.head(patch=8)
    for channels, view in ((1, "raster"), (3, "planar"), (1, "deep"), (3, "deep")):
        size = 4 * channels * (2 if view == "deep" else 1)  # four pixels each
        header = Header(width=2, height=2, channels=channels)
        head.update(scored(size, view, header))
    head.update(scored(9, "file", header, bits=0.0))
    assert head.figures()["bits_per_pixel"] == 48 / 16
    assert head.figures()["bits_per_dimension"] == 48 / 32
    assert head.figures()["bits_per_byte"] == 48 / 57
