"""GIF, BMP, WebP, AVIF and HEIC files."""

from __future__ import annotations

import builtins
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers.image_files import IMAGE, decode, encoded, noise, outcome, pixels, refusal, smooth

from bytelm.modalities.base import DecodeOptions, Limits, MediaError, Sample
from bytelm.modalities.image import deep_pixels

SEVERAL = "first of several pictures"


# --- GIF ---


def gif(size: tuple[int, int], frames: bytes, palette: bytes, background: int = 0) -> bytes:
    """A GIF with a palette of four colours."""
    screen = struct.pack("<HHBBB", *size, 0x91, background, 0)
    return b"GIF89a" + screen + palette + frames + b";"


def gif_frame(box: tuple[int, int, int, int], transparent: int | None = None) -> bytes:
    """A frame (left, top, width, height) whose pixels are 1, 2, 3, 1, 2, 3 ..."""
    width, height = box[2:]
    colours = PIL.Image.frombytes("P", (width, height), bytes([1, 2, 3] * 99)[: width * height])
    colours.putpalette(bytes(range(12)))
    data = encoded(colours, "GIF", optimize=False)
    coded = data[data.find(b",") + 10 : -1]
    flags = b"" if transparent is None else b"!\xf9\4\1\0\0" + bytes([transparent, 0])
    return flags + b"," + struct.pack("<HHHHB", *box, 0) + coded


PALETTE = bytes([200, 0, 0, 0, 200, 0, 0, 0, 200, 90, 90, 91])


def test_a_first_frame_smaller_than_its_canvas_lies_on_white() -> None:
    data = gif((4, 3), gif_frame((1, 1, 3, 1)), PALETTE)
    decoded = pixels(data)
    assert decoded.shape == (3, 4, 3)
    assert decoded[1, 1:].tolist() == [[0, 200, 0], [0, 0, 200], [90, 90, 91]]
    decoded = decoded.copy()
    decoded[1, 1:] = 255
    assert (decoded == 255).all()


def test_a_transparent_colour_of_a_gif_is_white() -> None:
    decoded = pixels(gif((3, 1), gif_frame((0, 0, 3, 1), transparent=2), PALETTE))
    assert decoded[0].tolist() == [[0, 200, 0], [255, 255, 255], [90, 90, 91]]


def test_animations_give_their_first_frame_and_a_note() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "GIF", "WEBP", "AVIF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert pixels(data)[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)
        assert decode(data).notes == (SEVERAL,)
        assert decode(encoded(frames[0], kind)).notes == ()


# --- BMP ---


def bmp(
    bits: int,
    rows: bytes,
    size: tuple[int, int],
    *,
    compression: int = 0,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
    header: int = 40,
) -> bytes:
    """A BMP; a negative height means that its lines begin at the top."""
    info = struct.pack("<IiiHHIIiiII", header, *size, 1, bits, compression, len(rows), 0, 0, 0, 0)
    extra = struct.pack(f"<{len(masks)}I", *masks)
    info = info + (extra.ljust(header - 40, b"\0") if header > 40 else extra) + palette
    start = 14 + len(info)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + rows


MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@pytest.mark.parametrize("header", [56, 108, 124])
def test_alpha_that_is_zero_everywhere_is_no_alpha(header: int) -> None:
    rows = b"".join(bytes([10 * i, 20, 30, 0]) for i in range(4))
    data = bmp(32, rows, (4, 1), compression=3, masks=MASKS, header=header)
    assert pixels(data)[0].tolist() == [[30, 20, 10 * i] for i in range(4)]


def test_alpha_of_a_bmp_that_is_used_is_laid_on_white() -> None:
    rows = bytes([1, 2, 3, 255, 1, 2, 3, 0])
    data = bmp(32, rows, (2, 1), compression=3, masks=MASKS, header=108)
    assert pixels(data)[0].tolist() == [[3, 2, 1], [255, 255, 255]]


def test_the_fourth_byte_without_a_mask_is_unused() -> None:
    rows = bytes([1, 2, 3, 0, 1, 2, 3, 9])
    assert pixels(bmp(32, rows, (2, 1)))[0].tolist() == [[3, 2, 1], [3, 2, 1]]


def test_every_depth_of_a_bmp() -> None:
    colours = bytes([0, 0, 0, 0, 30, 20, 10, 0])
    two = colours + bytes(4 * 14)
    black, other = [0, 0, 0], [10, 20, 30]
    for data, expected in (
        (bmp(1, bytes([0b01000000, 0, 0, 0]), (2, 1), palette=colours), [black, other]),
        (bmp(4, bytes([0x01, 0, 0, 0]), (2, 1), palette=two), [black, other]),
        (bmp(8, bytes([0, 1, 0, 0]), (2, 1), palette=two + bytes(960)), [black, other]),
        (bmp(16, struct.pack("<HH", 0, 0x7C1F), (2, 1)), [black, [255, 0, 255]]),
        (bmp(24, bytes([0, 0, 0, 30, 20, 10, 0, 0]), (2, 1)), [black, other]),
        (
            bmp(
                16, struct.pack("<HH", 0, 0xF81F), (2, 1), compression=3, masks=(0xF800, 0x7E0, 31)
            ),
            [black, [255, 0, 255]],
        ),
        (
            bmp(
                8, bytes([1, 0, 1, 1, 0, 0, 0, 1]), (2, 1), compression=1, palette=two + bytes(960)
            ),
            [black, other],
        ),
    ):
        assert IMAGE.recognises(data)
        assert pixels(data)[0].tolist() == expected


def test_lines_of_a_bmp_may_begin_at_the_top() -> None:
    rows = bytes([1, 1, 1, 0, 2, 2, 2, 0])
    assert pixels(bmp(24, rows, (1, 2)))[:, 0, 0].tolist() == [2, 1]
    assert pixels(bmp(24, rows, (1, -2)))[:, 0, 0].tolist() == [1, 2]


def test_every_cut_of_a_bmp_is_refused() -> None:
    palette = bytes([0, 0, 0, 0, 30, 20, 10, 0]) + bytes(4 * 254)
    coded = bytes([4, 0, 0, 0, 4, 1, 0, 0, 4, 0, 0, 1])
    for whole in (
        bmp(24, bytes(range(48)), (4, 4)),
        bmp(8, coded, (4, 3), compression=1, palette=palette),
        bmp(1, bytes(16), (4, 4), palette=palette[:8]),
    ):
        assert isinstance(outcome(whole), Sample)
        for size in range(30, len(whole) - 3):
            assert outcome(whole[:size]) in ("truncated", "unreadable"), size


# --- WebP, AVIF, HEIC ---


def heic(picture: PIL.Image.Image, **options: object) -> bytes:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}])
def test_webp_is_decoded_as_pillow_does(mode: str, options: dict[str, object]) -> None:
    picture = smooth(40, 30).convert(mode)
    data = encoded(picture, "WEBP", **options)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels(data), expected)
    assert decode(data + b"behind") == decode(data)


def test_avif_and_heic_are_decoded() -> None:
    for data in (encoded(smooth(), "AVIF", quality=90), heic(smooth(), quality=90)):
        assert IMAGE.recognises(data)
        difference = np.abs(pixels(data).astype(int) - np.asarray(smooth()))
        assert difference.mean() < 3
        assert pixels(data).shape == (256, 256, 3)


def test_alpha_of_avif_and_heic_is_laid_on_white() -> None:
    clear = PIL.Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    for data in (encoded(clear, "AVIF"), heic(clear)):
        assert pixels(data).min() > 250


def test_heic_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(smooth())
    importer = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "pillow_heif":
            raise ImportError(name)
        return importer(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'bytelm[media]'" in refusal(data).detail


@pytest.mark.parametrize("kind", ["AVIF", "HEIC", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(kind: str) -> None:
    data = heic(smooth()) if kind == "HEIC" else encoded(smooth(), kind)
    for share in (0.2, 0.5, 0.9):
        assert outcome(data[: int(len(data) * share)]) in ("truncated", "unreadable", "damaged")


@pytest.mark.parametrize("kind", ["AVIF", "HEIC", "WEBP", "GIF", "BMP", "TIFF", "JPEG", "PNG"])
def test_limits_are_checked_before_pixels_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = heic(noise(200, 100)) if kind == "HEIC" else encoded(noise(200, 100), kind)
    monkeypatch.setattr("bytelm.modalities.image_files.decode.to_pixels", None)
    for limits in (Limits(max_side=199), Limits(max_bytes=59_999)):
        with pytest.raises(MediaError, match="over the limit"):
            decode(data, DecodeOptions(limits=limits))


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_the_orientation_is_applied(kind: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    plain = encoded(smooth(40, 20), kind)
    turned = encoded(smooth(40, 20), kind, exif=exif.tobytes())
    assert np.array_equal(pixels(turned), np.rot90(pixels(plain), -1))


# --- more than 8 bits ---


@pytest.mark.parametrize(("mode", "values"), [("L;16", 1), ("RGB;16", 3), ("RGBA;16", 4)])
def test_heic_of_ten_bits_keeps_them_where_asked(mode: str, values: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    levels = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64, 1)
    samples = np.repeat(levels, values, 2)
    if values == 4:
        samples[:, :, 3] = 65535
    file = io.BytesIO()
    pillow_heif.from_bytes(mode, (64, 48), samples.tobytes()).save(file, quality=-1)
    data = file.getvalue()
    deep, usual = decode(data, DecodeOptions(keep_depth=True)), decode(data)
    assert deep.is_deep
    assert deep.notes == ()
    assert usual.notes == ("10 bits kept as 8",)
    kept = deep_pixels(deep).astype(int)
    assert kept.shape == (48, 64, min(values, 3))
    assert np.abs(kept - levels).max() < 1000, "a lossy codec"
    assert kept.max() == 65535
    assert len(np.unique(kept)) > 500
    assert np.array_equal(pixels(data), kept >> 8)


AVIF_OF_TEN_BITS = """
import sys, av, numpy
with av.open(sys.argv[1], "w", format="avif") as output:
    track = output.add_stream("libsvtav1", rate=1)
    track.width = track.height = 64
    track.pix_fmt = "yuv420p10le"
    frame = av.VideoFrame.from_ndarray(numpy.full((64, 64, 3), 99, numpy.uint8), format="rgb24")
    for picture in (frame.reformat(format="yuv420p10le"), None):
        for packet in track.encode(picture):
            output.mux(packet)
"""


def test_avif_of_ten_bits_is_read_as_eight_with_a_note(tmp_path: Path) -> None:
    """The file is made in a process of its own: run by root, the encoder gives the process that
    calls it a real-time priority, which all later tests would inherit."""
    pytest.importorskip("av")
    path = tmp_path / "ten.avif"
    subprocess.run([sys.executable, "-c", AVIF_OF_TEN_BITS, path], check=True)
    assert decode(path.read_bytes()).notes == ("10 bits kept as 8",)
    assert decode(encoded(smooth(), "AVIF")).notes == ()
