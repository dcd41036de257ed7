"""Codec features: by definition, whole rows against id by id, and as the stream frames them."""

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
from bytelm.model.codec_features.layout import FEATURES, MATCHES, NONE, PayloadLayout
from bytelm.model.codec_features.linear_prediction import predict_samples
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
    """Frame one document for each name.

    Returns ids [1, T] and documents [1, T / P]. The first document lacks its first `skipped`
    payload bytes.
    """
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


def expected_features(ids: np.ndarray, patch: int) -> np.ndarray:
    """The features of one document [T], straight from their definition."""
    segment = next(framing.parse(ids, patch))
    name, header, offset = segment.modality.name, segment.header, segment.offset
    features = np.full((len(ids), FEATURES), NONE)
    begin = segment.payload.start
    stop = next((k for k in range(begin, len(ids), patch) if ids[k] > 255), len(ids))
    payload = [int(id_) if id_ < 256 else 0 for id_ in ids[begin : stop + patch]]
    unit = header.channels if segment.view == "raster" else 1
    kinds = {("image", "raster"): image_features, ("image", "planar"): image_features}
    kinds |= {("audio", "s16be"): audio_features}
    predict = kinds.get((name, segment.view)) if header.width != 1 else None
    if name == "audio":
        unit = 2 * header.channels
    for index in range(len(payload)):
        preceding = payload[:index]
        if predict:
            features[begin + index, :MATCHES] = [
                *predict(preceding, unit, header.width, offset),
                (offset + index) % unit,
            ]
        if predict != audio_features:
            candidates = [candidate(preceding, k) for k in (4, 6, 8)]
            runs = [int(16 * math.log2(1 + run_length(preceding, k))) for k in (4, 6, 8)]
            features[begin + index, MATCHES:] = [*candidates, *runs]
    return features


def candidate(preceding: list[int], k: int) -> int:
    """The byte after the latest earlier occurrence of the last k bytes."""
    for index in range(len(preceding) - 1, k - 1, -1):
        if preceding[index - k : index] == preceding[-k:]:
            return preceding[index]
    return NONE


def run_length(preceding: list[int], k: int) -> int:
    """How many of the last bytes in a row were their candidates."""
    run = 0
    while run < len(preceding):
        *earlier, byte = preceding[: len(preceding) - run]
        if candidate(earlier, k) != byte:
            break
        run += 1
    return run


def image_features(preceding: list[int], unit: int, width: int, offset: int) -> list[int]:
    padded = [0] * (1 << 11) + preceding
    line = unit * width
    left, above, corner, right = (
        padded[-distance] for distance in (unit, line, line + unit, line - unit)
    )
    plane = left + above - corner
    predictions = [sorted((left, above, plane))[1], plane]
    predictions += [padded[-1] + above - padded[-line - 1], padded[-1] + left - padded[-unit - 1]]
    return [min(max(value, 0), 255) for value in predictions] + [left, above, corner, right]


def audio_features(preceding: list[int], unit: int, width: int, offset: int) -> list[int]:
    leading = offset % 2
    is_low = (len(preceding) + offset) % 2
    if is_low and len(preceding) < 2 and leading:
        return [0, 128] * 3 + [0, 0]
    whole = bytes(preceding[leading : len(preceding) - is_low])
    samples = np.frombuffer(whole, ">i2").astype(np.int64)
    channel = samples[len(samples) % (unit // 2) :: unit // 2]
    linear = predict_samples(torch.from_numpy(channel.copy())[None])[0].tolist()
    last = [0, 0, *channel.tolist()]
    numbers: list[int] = []
    for sample in (linear[-1], 2 * last[-1] - last[-2], last[-1]):
        sample = min(max(sample, -32768), 32767)
        if is_low:
            high = int(np.int8(np.uint8(preceding[-1])))
            numbers += [sample - 256 * high, sample // 256 - high + 128]
        else:
            numbers += [sample // 256 % 256, sample % 256]
    errors = [0] * 128 + [abs(a - b) for a, b in zip(last[2:], linear, strict=False)]
    means = [sum(errors[-span:]) / span for span in (16, 128)]
    magnitudes = [int(16 * math.log2(1 + mean) + 1e-9) for mean in means]
    return [min(max(number, 0), 255) for number in numbers] + magnitudes


@pytest.mark.parametrize("name", sorted(SEGMENTS))
@pytest.mark.parametrize("patch", [1, 3, 4, 8, 16])
def test_features_follow_their_definition(name: str, patch: int) -> None:
    size = SEGMENTS[name][3]
    for skipped in (0, min(3, size // patch) * patch):
        ids, document = framed([name, name], patch, skipped)
        features = compute_codec_features(ids, document, patch)[0].numpy()
        assert (features != NONE).any()
        for number in (0, 1):
            is_inside = (document[0] == number).repeat_interleave(patch).numpy()
            expected = expected_features(ids[0].numpy()[is_inside], patch)
            assert np.array_equal(features[is_inside], expected)


def test_the_openings_and_views_are_the_streams() -> None:
    image, audio = MODALITIES["image"], MODALITIES["audio"]
    text = MODALITIES["text"]
    assert (text.som, image.som, audio.som) == (layout.TEXT, layout.IMAGE, layout.AUDIO)
    assert framing.PAD == layout.PAD
    assert image.view_code("raster") == layout.RASTER
    assert image.view_code("planar") == layout.PLANAR
    assert audio.view_code("s16be") == layout.S16BE
    for modality in (text, image, audio):
        assert modality.header_size == layout.OPENING_LENGTHS[modality.som] - 1
        for patch in range(1, 40):
            length = framing.preamble_length(modality, patch)
            assert layout.preamble_patches(modality.som, patch) * patch == length


def any_row(patch: int) -> st.SearchStrategy[Tensor]:
    """Rows that begin as documents do, with ids of any kind put anywhere."""
    return st.builds(
        edited,
        st.lists(st.sampled_from(sorted(SEGMENTS)), min_size=1, max_size=3),
        st.lists(st.tuples(st.floats(0, 0.999), st.sampled_from([0, 7, 255, *range(256, 264)]))),
        st.just(patch),
    )


def edited(names: list[str], edits: list[tuple[float, int]], patch: int) -> Tensor:
    ids = framed([n if patch > 1 or n != "tiles" else "text" for n in names], patch)[0]
    for share, id_ in edits:
        ids[0, int(share * ids.shape[1])] = id_
    return ids


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([1, 4, 8]).flatmap(lambda p: st.tuples(st.just(p), any_row(p))), st.data())
def test_features_follow_from_the_preceding_ids(
    case: tuple[int, Tensor], data: st.DataObject
) -> None:
    """Later ids change nothing, and a row read id by id has the same features."""
    patch, ids = case
    document = torch.zeros(1, 1, dtype=torch.int32)
    features = compute_codec_features(ids, document, patch)
    position = data.draw(st.integers(0, ids.shape[1] - 1))
    other = ids.clone()
    other[:, position:] = data.draw(st.sampled_from([3, 256, 257, 259, 260, 261]))
    other_features = compute_codec_features(other, document, patch)
    assert torch.equal(other_features[:, : position + 1], features[:, : position + 1])
    assert torch.equal(read_id_by_id(ids, patch), features)


def read_id_by_id(ids: Tensor, patch: int) -> Tensor:
    incremental, features = IncrementalFeatures(patch), []
    for id_ in ids[0].tolist():
        features.append(incremental.codec_features())
        incremental.push(id_)
    return torch.tensor([features], dtype=torch.int16)


def test_a_document_that_ends_in_padding_has_no_payload() -> None:
    """As where the text before it ends one id before its patch does, with no room for EOD."""
    ids = torch.tensor([[259, 0, 0, 0, 0, 40, *[256] * 2, *[256] * 8]])
    features = compute_codec_features(ids, torch.zeros(1, 1).int(), 8)
    assert torch.equal(features, read_id_by_id(ids, 8))
    one_more = torch.cat([ids, ids[:, :8]], dim=1)
    longer = compute_codec_features(one_more, torch.zeros(1, 1).int(), 8)
    assert torch.equal(longer[:, :16], features)


def test_rows_framed_for_a_larger_patch_have_their_features() -> None:
    """A flat model reads the rows of models with patches."""
    ids, document = framed(["raster", "mono"], 8)
    flat = compute_codec_features(ids, document, 1)
    patched = compute_codec_features(ids, document, 8)
    is_payload = (patched != NONE).any(dim=-1) & (ids < 256)
    assert is_payload.sum() == 60 + 164
    assert torch.equal(flat[is_payload], patched[is_payload])


def test_openings_without_a_known_layout_have_matches_alone() -> None:
    opening = [260, 0, 5, 0, 4, 3, 0, 0, 0, 0, 4]
    assert PayloadLayout.from_opening(opening) == PayloadLayout("image", unit=3, line=15, phase=1)
    for other in (
        [*opening[:4], 258, *opening[5:]],
        [260, 0, 5, 0, 4, 0, *opening[6:]],
        [259, 0, 0, 0, 0, 0],
    ):
        assert PayloadLayout.from_opening(other) == PayloadLayout("bytes")
