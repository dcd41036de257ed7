"""Codec features: against the reference, in whole rows and id by id, as the stream frames them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.codec_reference import reference_features
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header
from bytelm.model.codec_features import layout
from bytelm.model.codec_features.incremental import BatchFeatures
from bytelm.model.codec_features.layout import MATCHES, NONE
from bytelm.model.codec_features.vectorized import compute_codec_features

SEGMENTS = {
    "raster": ("image", Header(width=5, height=4, channels=3), "raster", 60),
    "grey": ("image", Header(width=9, height=7, channels=1), "raster", 63),
    "planar": ("image", Header(width=9, height=3, channels=3), "planar", 81),
    "narrow": ("image", Header(width=1, height=18, channels=1), "raster", 18),
    "wide": ("image", Header(width=300, height=1, channels=1), "raster", 300),
    "deep": ("image", Header(width=6, height=4, channels=2), "deep", 96),
    "alpha": ("image", Header(width=4, height=5, channels=4), "raster", 80),
    "tiles": ("image", Header(width=8, height=4, channels=1), "patch", 32),
    "file": ("image", Header(width=8, height=4, channels=1), "file", 40),
    "mono": ("audio", Header(rate=8000, channels=1), "s16be", 164),
    "stereo": ("audio", Header(rate=44100, channels=2), "s16be", 188),
    "eight": ("audio", Header(rate=8000, channels=8), "s16be", 624),
    "little": ("audio", Header(rate=8000, channels=1), "s16le", 60),
    "mulaw": ("audio", Header(rate=8000, channels=1), "mulaw", 40),
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


def expected_features(ids: Tensor, document: Tensor, patch: int) -> Tensor:
    """The features [1, T, J] of ids [1, T] by the reference."""
    features = reference_features(ids[0].tolist(), document[0].tolist(), patch)
    return torch.from_numpy(features)[None]


@pytest.mark.parametrize("name", sorted(SEGMENTS))
@pytest.mark.parametrize("patch", [1, 3, 4, 8, 16])
def test_features_are_those_of_the_reference(name: str, patch: int) -> None:
    size = SEGMENTS[name][3]
    for skipped in (0, min(3, size // patch) * patch):
        ids, document = framed([name, name], patch, skipped)
        features = compute_codec_features(ids, document, patch)
        assert (features != NONE).any()
        assert torch.equal(features, expected_features(ids, document, patch))


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


@st.composite
def patch_and_row(draw: st.DrawFn) -> tuple[int, Tensor]:
    """A patch P and a row for it."""
    patch = draw(st.sampled_from([1, 4, 8]))
    return patch, draw(any_row(patch))


@settings(max_examples=100, deadline=None)
@given(patch_and_row(), st.data())
def test_any_documents_of_a_row_have_the_features_of_the_reference(
    case: tuple[int, Tensor], data: st.DataObject
) -> None:
    patch, ids = case
    patches = ids.shape[1] // patch
    ends = data.draw(st.lists(st.integers(0, patches - 1), max_size=5))
    is_first = torch.zeros(1, patches, dtype=torch.int32)
    is_first[0, ends] = 1
    document = is_first.cumsum(dim=1).int()
    features = compute_codec_features(ids, document, patch)
    assert torch.equal(features, expected_features(ids, document, patch))


@settings(max_examples=100, deadline=None)
@given(patch_and_row(), st.data())
def test_features_follow_from_the_preceding_ids(
    case: tuple[int, Tensor], data: st.DataObject
) -> None:
    """Later ids change nothing, and rows read id by id have the same features."""
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
    """Features [1, T, J] of ids [1, T], pushed one at a time beside a row that is ahead."""
    rows = BatchFeatures(2, patch, ids.shape[1] + 20)
    rows.push_row(1, ids[0, :20])
    features = []
    for id_ in ids[0]:
        features.append(rows.features()[0].clone())
        rows.push(id_.expand(2))
    return torch.stack(features)[None]


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


@pytest.mark.parametrize(
    "opening",
    [
        [260, 0, 5, 0, 4, 258, 0, 0, 0, 0, 4],
        [260, 0, 5, 0, 4, 0, 0, 0, 0, 0, 4],
        [260, 0, 1, 0, 4, 3, 0, 0, 0, 0, 4],
        [260, 0, 5, 0, 4, 3, 2, 0, 0, 0, 4],
        [261, 0, 0, 0, 9, 1, 0, 0, 0, 0, 0],
        [261, 0, 0, 0, 9, 0, 1, 0, 0, 0, 0],
        [259, 0, 0, 0, 0, 0],
    ],
)
def test_openings_without_a_known_layout_have_matches_alone(opening: list[int]) -> None:
    padding = [256] * (16 - len(opening))
    ids = torch.tensor([[*opening, *padding, *b"abcdeabcdeabcde", 0]])
    features = compute_codec_features(ids, torch.zeros(1, 1), 16)[0, 16:]
    assert (features[:, :MATCHES] == NONE).all()
    assert features[:, MATCHES].tolist() == [NONE] * 9 + list(b"eabcdea")


def test_rows_of_a_batch_have_their_own_features() -> None:
    parts = [framed([name, name], 8) for name in ("raster", "stereo", "text")]
    shortest = min(ids.shape[1] for ids, _ in parts)
    ids = torch.cat([ids[:, :shortest] for ids, _ in parts])
    document = torch.cat([document[:, : shortest // 8] for _, document in parts])
    together = compute_codec_features(ids, document, 8)
    for row in range(3):
        assert torch.equal(
            together[row : row + 1],
            compute_codec_features(ids[row : row + 1], document[row : row + 1], 8),
        )


def test_a_full_row_takes_no_further_id() -> None:
    rows = BatchFeatures(1, 4, 8)
    rows.push_row(0, torch.zeros(8, dtype=torch.int64))
    with pytest.raises(AssertionError):
        rows.push(torch.zeros(1, dtype=torch.int64))
