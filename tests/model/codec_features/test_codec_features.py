"""Hints: what they say, from whichever ids, and that the stream's headers are read as written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header
from bytelm.model.codec_features import layout
from bytelm.model.codec_features.incremental import IncrementalFeatures
from bytelm.model.codec_features.layout import FEATURES, PREDICTIONS, PayloadLayout
from bytelm.model.codec_features.linear_prediction import predicted
from bytelm.model.codec_features.match import NONE
from bytelm.model.codec_features.vectorized import compute_codec_features

SEGMENTS = {
    "raster": ("image", Header(width=5, height=4, channels=3), "raster", 60),
    "grey": ("image", Header(width=9, height=7, channels=1), "raster", 63),
    "planar": ("image", Header(width=9, height=3, channels=3), "planar", 81),
    "narrow": ("image", Header(width=1, height=18, channels=1), "raster", 18),
    "wide": ("image", Header(width=300, height=1, channels=1), "raster", 300),
    "tiles": ("image", Header(width=8, height=4, channels=1), "patch", 32),
    "file": ("image", Header(width=8, height=4, channels=1), "file", 40),
    "mono": ("audio", Header(rate=8000, channels=1), "s16be", 164),
    "stereo": ("audio", Header(rate=44100, channels=2), "s16be", 188),
    "u8": ("audio", Header(rate=8000, channels=1), "u8", 40),
    "text": ("text", Header(), "utf8", 50),
}


def framed(names: list[str], patch: int, skipped: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [1, T] and documents [1, T / P] of one document for each name, the first of them without
    its first `skipped` payload bytes."""
    generator = np.random.default_rng(len(names) + patch)
    rows, documents = [], []
    for number, name in enumerate(names):
        modality, header, view, size = SEGMENTS[name]
        segment = framing.Segment(MODALITIES[modality], header, view, size)
        payload = generator.integers(0, 256, size, dtype=np.uint8)
        payload[size // 3 : size // 3 + 10] = payload[:10]
        payload[size // 2 :] %= 2
        start = 0 if number else skipped
        length = int(framing.body_length(size, patch)) - start
        span = framing.Span(0, start, length)
        row = framing.frame([span], [segment], lambda _, a, b, of=payload: of[a:b], patch).ids
        rows.append(row.astype(np.int64))
        documents += [number] * (len(row) // patch)
    return torch.from_numpy(np.concatenate(rows))[None], torch.tensor([documents]).int()


def expected(ids: np.ndarray, patch: int) -> np.ndarray:
    """The hints of one document [T], one id after the other."""
    segment = next(framing.parse(ids, patch))
    name, header, offset = segment.modality.name, segment.header, segment.offset
    made = np.full((len(ids), FEATURES), NONE)
    begin = segment.payload.start
    stop = next((k for k in range(begin, len(ids), patch) if ids[k] > 255), len(ids))
    payload = [int(id_) if id_ < 256 else 0 for id_ in ids[begin : stop + patch]]
    near = header.channels if segment.view == "raster" else 1
    of = {("image", "raster"): _of_image, ("image", "planar"): _of_image}
    of |= {("audio", "s16be"): _of_sound}
    guesses = of.get((name, segment.view)) if header.width != 1 else None
    if name == "audio":
        near = 2 * header.channels
    for at in range(len(payload)):
        before = payload[:at]
        if guesses:
            made[begin + at, :PREDICTIONS] = [
                *guesses(before, near, header.width, offset),
                (offset + at) % near,
            ]
        if guesses != _of_sound:
            found = [_match(before, k) for k in (4, 6, 8)]
            runs = [_run(before, k) for k in (4, 6, 8)]
            made[begin + at, PREDICTIONS:] = [*found, *(int(16 * math.log2(1 + n)) for n in runs)]
    return made


def _match(before: list[int], k: int) -> int:
    for at in range(len(before) - 1, k - 1, -1):
        if before[at - k : at] == before[-k:]:
            return before[at]
    return NONE


def _run(before: list[int], k: int) -> int:
    run = 0
    while run < len(before) and _match(before[: len(before) - run - 1], k) == before[-run - 1]:
        run += 1
    return run


def _of_image(before: list[int], near: int, width: int, offset: int) -> list[int]:
    padded = [0] * (1 << 11) + before
    line = near * width
    left, up, corner, right = (
        padded[-distance] for distance in (near, line, line + near, line - near)
    )
    plane = left + up - corner
    guesses = [sorted((left, up, plane))[1], plane]
    guesses += [padded[-1] + up - padded[-line - 1], padded[-1] + left - padded[-near - 1]]
    return [min(max(guess, 0), 255) for guess in guesses] + [left, up, corner, right]


def _of_sound(before: list[int], near: int, width: int, offset: int) -> list[int]:
    lost = offset % 2
    is_low = (len(before) + offset) % 2
    if is_low and len(before) < 2 and lost:
        return [0, 128] * 3 + [0, 0]
    whole = bytes(before[lost : len(before) - is_low])
    samples = np.frombuffer(whole, ">i2").astype(np.int64)
    own = before[-1:] if is_low else []
    channel = len(samples) % (near // 2)
    of_channel = torch.from_numpy(samples[channel :: near // 2].copy())[None]
    linear = predicted(of_channel)[0].tolist()
    last = [0, 0, *of_channel[0].tolist()]
    numbers: list[int] = []
    for guess in (linear[-1], 2 * last[-1] - last[-2], last[-1]):
        guess = min(max(guess, -32768), 32767)
        if is_low:
            high = int(np.int8(np.uint8(own[0])))
            numbers += [guess - 256 * high, guess // 256 - high + 128]
        else:
            numbers += [guess // 256 % 256, guess % 256]
    off = [0] * 128 + [abs(a - b) for a, b in zip(last[2:], linear, strict=False)]
    measured = [int(16 * math.log2(1 + sum(off[-span:]) / span) + 1e-9) for span in (16, 128)]
    return [min(max(number, 0), 255) for number in numbers] + measured


@pytest.mark.parametrize("name", sorted(SEGMENTS))
@pytest.mark.parametrize("patch", [1, 3, 4, 8, 16])
def test_hints_are_what_the_headers_say(name: str, patch: int) -> None:
    size = SEGMENTS[name][3]
    for skipped in (0, min(3, size // patch) * patch):
        ids, document = framed([name, name], patch, skipped)
        found = compute_codec_features(ids, document, patch)[0].numpy()
        assert (found != NONE).any()
        for number in (0, 1):
            own = (document[0] == number).repeat_interleave(patch).numpy()
            assert np.array_equal(found[own], expected(ids[0].numpy()[own], patch))


def test_the_openings_and_views_are_the_streams() -> None:
    image, audio = MODALITIES["image"], MODALITIES["audio"]
    text = MODALITIES["text"]
    assert (text.som, image.som, audio.som) == (layout.TEXT, layout.IMAGE, layout.AUDIO)
    assert framing.PAD == layout.PAD
    assert image.view_code("raster") == layout.RASTER
    assert image.view_code("planar") == layout.PLANAR
    assert audio.view_code("s16be") == layout.S16BE
    for modality in (text, image, audio):
        assert modality.header_size == layout.HEADS[modality.som] - 1
        for patch in range(1, 40):
            length = framing.preamble_length(modality, patch)
            assert layout.preamble(modality.som, patch) * patch == length


def any_row(patch: int) -> st.SearchStrategy[Tensor]:
    """Rows that begin as documents do, with ids of any kind put anywhere."""
    return st.builds(
        _edited,
        st.lists(st.sampled_from(sorted(SEGMENTS)), min_size=1, max_size=3),
        st.lists(st.tuples(st.floats(0, 0.999), st.sampled_from([0, 7, 255, *range(256, 264)]))),
        st.just(patch),
    )


def _edited(names: list[str], edits: list[tuple[float, int]], patch: int) -> Tensor:
    ids = framed([n if patch > 1 or n != "tiles" else "text" for n in names], patch)[0]
    for share, id_ in edits:
        ids[0, int(share * ids.shape[1])] = id_
    return ids


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([1, 4, 8]).flatmap(lambda p: st.tuples(st.just(p), any_row(p))), st.data())
def test_hints_follow_from_the_ids_before(row: tuple[int, Tensor], data: st.DataObject) -> None:
    """Whatever comes after, and read id by id too."""
    patch, ids = row
    document = torch.zeros(1, 1, dtype=torch.int32)
    found = compute_codec_features(ids, document, patch)
    at = data.draw(st.integers(0, ids.shape[1] - 1))
    other = ids.clone()
    other[:, at:] = data.draw(st.sampled_from([3, 256, 257, 259, 260, 261]))
    assert torch.equal(
        compute_codec_features(other, document, patch)[:, : at + 1], found[:, : at + 1]
    )

    cursor = IncrementalFeatures(patch)
    for held, id_ in enumerate(ids[0].tolist()):
        assert cursor.codec_features() == found[0, held].tolist()
        cursor.push(id_)


def test_rows_framed_for_a_larger_patch_have_their_hints() -> None:
    """A flat model reads what models with patches read."""
    ids, document = framed(["raster", "mono"], 8)
    flat = compute_codec_features(ids, document, 1)
    patched = compute_codec_features(ids, document, 8)
    is_payload = (patched != NONE).any(dim=-1) & (ids < 256)
    assert is_payload.sum() == 60 + 164
    assert torch.equal(flat[is_payload], patched[is_payload])


def test_heads_that_say_nothing_known_have_matches_alone() -> None:
    head = [260, 0, 5, 0, 4, 3, 0, 0, 0, 0, 4]
    assert PayloadLayout.of(head) == PayloadLayout("image", near=3, line=15, phase=1)
    assert PayloadLayout.of([*head[:4], 258, *head[5:]]) == PayloadLayout("bytes")
    assert PayloadLayout.of([260, 0, 5, 0, 4, 0, *head[6:]]) == PayloadLayout("bytes")
    assert PayloadLayout.of([259, 0, 0, 0, 0, 0]) == PayloadLayout("bytes")
