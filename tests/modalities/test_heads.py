"""Evaluation heads: exact sums that add up over parts and bins, and heads of new modalities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.scored_segments import scored
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import FILE_VIEW, Header
from bytelm.modalities.evaluation_head import (
    ERRORS,
    MATCHES,
    Breakdown,
    EvaluationHead,
    ScoredSegment,
    to_units,
)

COMMON = {"patch_position", "context_position", "codec_match", "codec_error"}
VIEWS = [(name, view) for name, m in MODALITIES.items() for view in (*m.views, FILE_VIEW)]
GREY, COLOUR = Header(7, 5, 1), Header(7, 5, 3)
MONO, STEREO = Header(channels=1, rate=16), Header(channels=2, rate=16)
HEADERS = {"text": (Header(), Header()), "image": (GREY, COLOUR), "audio": (MONO, STEREO)}


def whole(name: str, view: str, number: int, seed: int) -> ScoredSegment:
    """A whole segment of random bytes and scores, as large as its header says."""
    header = HEADERS[name][number]
    size = header.width * header.height * header.channels or 60
    size *= 2 if view == "deep" else 1
    rng = np.random.default_rng(seed)
    match = rng.integers(0, len(MATCHES), size).astype(np.uint8)
    error = rng.integers(0, len(ERRORS), size).astype(np.uint8)
    bits = rng.exponential(2, size)
    return scored(rng.bytes(size), view, header, bits=bits, match=match, error=error)


def part(segment: ScoredSegment, start: int, stop: int) -> ScoredSegment:
    """A part of a whole segment."""
    assert segment.match is not None
    assert segment.error is not None
    return ScoredSegment(
        header=segment.header,
        view=segment.view,
        patch=segment.patch,
        offset=start,
        is_last=stop == segment.payload.size,
        payload=segment.payload[start:stop],
        payload_nats=segment.payload_nats[start:stop],
        frame_nats=segment.frame_nats,
        context=segment.context[start:stop],
        patch_position=segment.patch_position[start:stop],
        match=segment.match[start:stop],
        error=segment.error[start:stop],
    )


def test_a_uniform_model_scores_exactly_eight_in_double_and_single_precision() -> None:
    logits = torch.full((1000, 264), -1e9)
    for value in (0.0, 0.7, -31.3, 4096.1):
        logits[:, :256] = value
        targets = torch.arange(1000) % 256
        single = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        for nats in (single.double().numpy(), np.full(1000, math.log(256))):
            head = EvaluationHead(patch=8)
            bits = nats / math.log(2)
            head.update(scored(1000, "utf8", bits=bits))
            assert head.figures()["bits_per_byte"] == 8.0
            assert head.figures()["coded_bits_per_byte"] == 8.0


@pytest.mark.parametrize(("name", "view"), VIEWS)
@given(seed=st.integers(0, 1 << 30), number=st.integers(0, 1))
@settings(deadline=None, max_examples=10)
def test_the_bins_of_every_map_add_up_to_the_total(
    name: str, view: str, seed: int, number: int
) -> None:
    segment = whole(name, view, number, seed)
    head = MODALITIES[name].head(patch=8)
    head.update(segment)
    maps = {bit_map.name: bit_map for bit_map in head.maps()}
    assert set(maps) >= COMMON
    assert view == FILE_VIEW or len(maps) > len(COMMON)
    total = head.figures()["bits_per_byte"] * segment.payload.size
    assert total == pytest.approx(segment.payload_nats.sum() / math.log(2), abs=2e-6 * 210)
    for bit_map in maps.values():
        assert sum(bit_map.bytes) == segment.payload.size
        assert abs(sum(bit_map.bits) - total) < 1e-9, bit_map.name
        assert len(bit_map.labels) == len(bit_map.bits) == len(bit_map.bytes)
        assert math.prod(bit_map.shape) == len(bit_map.labels)


@pytest.mark.parametrize(("name", "view"), [v for v in VIEWS if v[0] != "text"])
@given(
    seed=st.integers(0, 1 << 30), number=st.integers(0, 1), cuts=st.tuples(*[st.floats(0, 1)] * 2)
)
@settings(deadline=None, max_examples=10)
def test_the_parts_of_a_segment_have_the_sums_of_the_whole(
    name: str, view: str, seed: int, number: int, cuts: tuple[float, float]
) -> None:
    """Parts begin anywhere: inside a pixel, a sample, a tile."""
    segment = whole(name, view, number, seed)
    size = segment.payload.size
    edges = [0, *sorted(int(cut * size) for cut in cuts), size]
    head, summed = (MODALITIES[name].head(patch=8) for _ in range(2))
    head.update(segment)
    for start, stop in itertools.pairwise(edges):
        of_part = MODALITIES[name].head(patch=8)
        of_part.update(part(segment, start, stop))
        summed.sums += of_part.sums
    for counter in ("payload_bytes", "payload_units"):
        assert summed.counted(counter) == head.counted(counter)
    assert summed.figures() == head.figures()  # NaN is one object here, and equals itself
    assert summed.maps() == head.maps()


def test_a_score_that_is_not_finite_shows_in_the_figures() -> None:
    for value in (math.nan, math.inf, 1e5):
        head = EvaluationHead(patch=8)
        head.update(scored(3, "utf8", bits=np.array([1.0, value, 2.0])))
        assert math.isnan(head.figures()["bits_per_byte"])
        assert head.counted("payload_bytes") == 3
    head = EvaluationHead(patch=8)
    head.update(scored(3, "utf8", frame_nats=np.array([math.inf])))
    assert head.figures()["bits_per_byte"] == 1.0
    assert math.isnan(head.figures()["coded_bits_per_byte"])
    assert math.isnan(EvaluationHead(patch=8).figures()["bits_per_byte"])
    assert EvaluationHead(patch=8).maps() == []


def test_units_are_rounded_and_their_sums_hold_a_trillion_bytes() -> None:
    assert to_units(np.array([0.0, math.log(2), -1e-9])).tolist() == [0, 1 << 18, 0]
    assert 10**12 * 35 << 18 < 2**63


def test_positions_in_context_and_patch_have_bins_of_their_own() -> None:
    head = EvaluationHead(patch=4)
    context = np.array([0, 15, 16, 31, 32, 1 << 19, 1 << 30])
    patch_position = np.array([0, 0, 1, 1, 3, 3, 3])
    bits = np.arange(1.0, 8.0)
    head.update(scored(7, "utf8", bits=bits, context=context, patch_position=patch_position))
    maps = {bit_map.name: bit_map for bit_map in head.maps()}
    assert maps["context_position"].labels == ("0–15", "16–31", "32–63", "524,288 and more")
    assert maps["context_position"].bits == (3.0, 7.0, 5.0, 13.0)
    assert maps["context_position"].bytes == (2, 2, 1, 2)
    assert maps["patch_position"].labels == ("0", "1", "3")
    assert maps["patch_position"].bits == (3.0, 7.0, 18.0)
    assert "codec_match" not in maps, "no codec features, no map"
    assert maps["patch_position"].to_dict() == {
        "name": "patch_position",
        "title": "by position in the patch",
        "axis": "position in the patch",
        "labels": ["0", "1", "3"],
        "shape": [3],
        "bits": [3.0, 7.0, 18.0],
        "bytes": [2, 2, 3],
    }


class VideoHead(EvaluationHead):
    """Made up: bits per frame of 4 bytes, and by byte of a frame."""

    counters = ("frames",)
    breakdowns = (Breakdown("frame_byte", "by byte of a frame", "byte", tuple("0123")),)

    def update(self, segment: ScoredSegment) -> None:
        super().update(segment)
        self.count("frames", segment.payload.size // 4)
        byte = np.arange(segment.offset, segment.offset + segment.payload.size) % 4
        self.spread("frame_byte", byte, segment.payload_units)

    def figures(self) -> dict[str, float]:
        return {**super().figures(), "bits_per_frame": self.bits_per(self.counted("frames"))}


def test_a_new_modality_brings_its_own_head_in_a_few_lines() -> None:
    head, other = VideoHead(patch=8), VideoHead(patch=8)
    head.update(scored(8, "rgba", bits=np.array([1.0, 2.0, 3.0, 4.0] * 2)))
    other.update(scored(4, "rgba", offset=8, bits=3.0))
    head.sums += other.sums
    assert head.figures() == {
        "bits_per_byte": 32 / 12,
        "coded_bits_per_byte": 32 / 12,
        "bits_per_frame": 32 / 3,
    }
    assert head.maps()[-1].bits == (5.0, 7.0, 9.0, 11.0)
    assert len(head.maps()) == 3
