"""Netpbm files: PBM, PGM, PPM, PAM."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.image_files import IMAGE, decode, outcome, pixels, refusal

RNG = np.random.default_rng(0)


def pam(samples: np.ndarray, maximum: int) -> bytes:
    height, width, values = samples.shape
    header = f"P7\n# a comment\nWIDTH {width}\nHEIGHT {height}\nDEPTH {values}\nMAXVAL {maximum}\n"
    dtype = ">u2" if maximum > 255 else "u1"
    return header.encode() + b"TUPLTYPE ANY\nENDHDR\n" + samples.astype(dtype).tobytes()


def test_every_kind_is_recognised_and_decoded() -> None:
    for data, expected in (
        (b"P1\n# by hand\n3 2\n1 0 1\n010", [0, 255, 0, 255, 0, 255]),
        (b"P4 3 2\n" + bytes([0b10100000, 0b01000000]), [0, 255, 0, 255, 0, 255]),
        (b"P2 3 1 255 # bright\n0 7 255\n", [0, 7, 255]),
        (b"P2 3 1 15 0 7 15", [0, 119, 255]),
        (b"P5 3 1 255\n\0\7\xff", [0, 7, 255]),
        (b"P5 3 1 3\n\0\1\3", [0, 85, 255]),
        (b"P3 1 1 255 1 2 3", [1, 2, 3]),
        (b"P6 1 1\n#c\n255\n\1\2\3", [1, 2, 3]),
        (b"P6 1 1 255\n\1\2\3and another image", [1, 2, 3]),
        (b"P5 2 1 65535\n\x12\x34\xff\xff", [0x12, 255]),
        (b"P5 2 1 4095\n\x0f\xff\x08\x00", [255, 128]),
    ):
        assert IMAGE.recognises(data)
        assert pixels(data).ravel().tolist() == expected


@pytest.mark.parametrize("values", [1, 2, 3, 4])
@pytest.mark.parametrize("maximum", [255, 65535])
def test_pam_has_up_to_four_values_a_pixel(values: int, maximum: int) -> None:
    samples = RNG.integers(0, maximum + 1, (4, 5, values))
    if values in (2, 4):
        samples[:, :, -1] = maximum
    data = pam(samples, maximum)
    assert IMAGE.recognises(data)
    colours = samples[:, :, : 1 if values <= 2 else 3]
    assert np.array_equal(pixels(data), colours >> (8 if maximum > 255 else 0))
    assert decode(data).notes == (("16 bits kept as 8",) if maximum > 255 else ())


def test_transparent_pixels_are_white() -> None:
    assert pixels(pam(np.array([[[9, 8, 7, 0]]]), 255)).ravel().tolist() == [255] * 3


def test_truncated_files_and_broken_headers_are_refused() -> None:
    for data, reason in (
        (b"P6 2 2 255\n" + bytes(11), "truncated"),
        (b"P5 2 2 65535\n" + bytes(7), "truncated"),
        (b"P4 9 2\n" + bytes(3), "truncated"),
        (b"P2 2 2 255\n1 2 3", "truncated"),
        (b"P2 2 1 255\n1 x", "damaged"),
        (b"P5 2 1 70000\n" + bytes(8), "damaged"),
        (b"P5 2 1 0\n" + bytes(8), "damaged"),
        (b"P5 0 1 255\n", "empty"),
        (b"P6 99999 1 255\n", "over the limit"),
        (b"P6 60000 60000 255\n", "over the limit"),
        (b"P7\nWIDTH 2\nENDHDR\n", "damaged"),
        (pam(np.zeros((1, 1, 5), int), 255), "unreadable"),
    ):
        assert outcome(data) == reason


def test_floating_point_pixels_are_refused_by_name() -> None:
    data = b"PF\n1 1\n-1.0\n" + bytes(12)
    assert IMAGE.recognises(data)
    assert "floating-point" in refusal(data).detail


def test_texts_that_begin_alike_are_no_images() -> None:
    for start in (b"P7 is a name", b"PF 12 monkeys", b"P5 12 monkeys in a tree", b"P7\nWIDER"):
        assert not IMAGE.recognises(start)
