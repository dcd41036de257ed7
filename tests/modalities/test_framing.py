"""The stream: framed documents are read back whole and once, however they are split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from helpers.sets import audio, image, text
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Sample

PATCHES = [1, 4, 8, 12, 192]
VIEWS = {
    "text": ["utf8"],
    "image": ["raster", "planar"],
    "audio": ["s16le", "s16be", "u8", "mulaw"],
}


@dataclass
class Drawn:
    """A document's segments and their payloads."""

    segments: list[framing.Segment]
    payloads: list[np.ndarray]

    @property
    def sizes(self) -> list[tuple[framing.Modality, int]]:
        return [(s.modality, s.size) for s in self.segments]

    def payload(self, segment: int, start: int, stop: int) -> np.ndarray:
        return self.payloads[segment][start:stop]

    def pieces(
        self, patch: int, rooms: list[int]
    ) -> list[tuple[list[framing.Span], framing.Framed]]:
        """Pieces of at most `rooms` patches each; the last room holds for all further pieces."""
        ahead = list(rooms)
        spans = framing.split_document(
            self.sizes, patch, lambda: (ahead.pop(0) if ahead[1:] else ahead[0]) * patch
        )
        return [(s, framing.frame(s, self.segments, self.payload, patch)) for s in spans]


def segment_of(sample: Sample, view: str) -> tuple[framing.Segment, np.ndarray]:
    modality = MODALITIES[sample.modality]
    payload = modality.to_view(sample, view, 192)
    return framing.Segment(modality, sample.header, view, payload.size), payload


@st.composite
def samples(draw: st.DrawFn, largest: int) -> Sample:
    seed = draw(st.integers(0, 1 << 30))
    kind = draw(st.sampled_from(sorted(MODALITIES)))
    if kind == "text":
        return text(np.random.default_rng(seed).bytes(draw(st.integers(0, largest))))
    if kind == "image":
        side = st.integers(1, max(1, int((largest / 3) ** 0.5)))
        return image(draw(side), draw(side), draw(st.sampled_from([1, 3])), seed)
    return audio(draw(st.integers(0, largest // 4)), draw(st.integers(1, 2)), seed=seed)


@st.composite
def documents(draw: st.DrawFn, largest: int = 3000) -> Drawn:
    drawn = [
        segment_of(s, draw(st.sampled_from(VIEWS[s.modality])))
        for s in draw(st.lists(samples(largest), min_size=1, max_size=3))
    ]
    return Drawn([segment for segment, _ in drawn], [payload for _, payload in drawn])


def check_pieces(
    document: Drawn, pieces: list[tuple[list[framing.Span], framing.Framed]], patch: int
) -> None:
    """Check that the pieces hold each payload once and in order, and its ends once."""
    parts_of: list[list[np.ndarray]] = [[] for _ in document.segments]
    for spans, framed in pieces:
        parsed = framing.unframe(framed.ids, patch)
        assert len(parsed) == len(spans)
        for span, (modality, header, view, offset, payload) in zip(spans, parsed, strict=True):
            segment = document.segments[span.segment]
            assert (modality, header, view) == (segment.modality, segment.header, segment.view)
            assert offset == sum(map(len, parts_of[span.segment]))
            parts_of[span.segment].append(payload)
    for parts, payload in zip(parts_of, document.payloads, strict=True):
        assert np.array_equal(np.concatenate(parts), payload)
    ids = np.concatenate([framed.ids for _, framed in pieces])
    assert (ids == framing.EOM).sum() == len(document.segments)
    assert (ids == framing.EOD).sum() == 1


@settings(max_examples=150, deadline=None)
@given(documents(), st.sampled_from(PATCHES))
def test_a_whole_document_is_read_back(document: Drawn, patch: int) -> None:
    pieces = document.pieces(patch, [1 << 40])
    assert len(pieces) == 1
    check_pieces(document, pieces, patch)
    ids, scored = pieces[0][1].ids, pieces[0][1].scored
    assert len(ids) % patch == 0
    assert np.array_equal(scored, ids != framing.PAD)
    length = sum(
        framing.preamble_length(m, patch) + framing.body_length(size, patch)
        for m, size in document.sizes
    )
    assert len(ids) == length


@settings(max_examples=150, deadline=None)
@given(documents(), st.sampled_from(PATCHES), st.data())
def test_a_split_document_is_read_back(document: Drawn, patch: int, data: st.DataObject) -> None:
    least = framing.min_row_length(patch) // patch
    rooms = [*data.draw(st.lists(st.integers(0, 40), max_size=30)), least + 10]
    pieces = document.pieces(patch, rooms)
    for (spans, framed), room in zip(pieces, rooms, strict=False):
        assert len(framed.ids) <= room * patch
        assert spans or room < least
    check_pieces(document, pieces, patch)

    for spans, framed in pieces:
        begin = 0
        for span in spans:
            modality = document.segments[span.segment].modality
            body = begin + framing.preamble_length(modality, patch)
            header = slice(begin, begin + 1 + modality.header_size)
            assert framed.scored[header].all() == framed.scored[header].any() == (span.start == 0)
            end = body + span.length
            assert np.array_equal(framed.scored[body:end], framed.ids[body:end] != framing.PAD)
            assert np.array_equal(framed.payload[body:end], framed.ids[body:end] < framing.PAD)
            assert (framed.modality[begin:end] == modality.code).all()
            assert not framed.payload[begin:body].any()
            begin = end
        assert not framed.scored[framed.ids == framing.PAD].any()


@settings(max_examples=12, deadline=None)
@given(documents(largest=1_300_000), st.sampled_from([8, 192]), st.integers(20, 6000))
def test_large_documents_are_read_back(document: Drawn, patch: int, room: int) -> None:
    check_pieces(document, document.pieces(patch, [room]), patch)


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 9, 1_300_000])
def test_ends_around_a_patch_boundary(size: int) -> None:
    segment, payload = segment_of(text(bytes(size)), "utf8")
    document = Drawn([segment, segment], [payload, payload])
    for room in (2, 3, 4, 1 << 20):
        if size < 100 or room > 100:
            check_pieces(document, document.pieces(8, [room]), 8)


def test_padding_between_documents_is_skipped() -> None:
    segment, payload = segment_of(text(b"call me"), "utf8")
    document = Drawn([segment], [payload])
    ids = document.pieces(8, [100])[0][1].ids
    padding = framing.Framed.padding(24, 8).ids
    parsed = framing.unframe(np.concatenate([padding, ids, padding, ids, padding]), 8)
    assert [payload.tobytes() for *_, payload in parsed] == [b"call me"] * 2


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([259, 0, 0], "header"),
        ([259, 0, framing.PAD, 0, 0, 0, 0, 0], "header"),
        ([259, 77, 0, 0, 0, 0, framing.PAD, framing.PAD], "no view"),
        ([65, 66, 67, 68, 69, 70, 71, 72], "where a segment"),
    ],
)
def test_broken_preambles_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        framing.unframe(np.array(ids, np.uint16), 8)


def test_ids_are_as_the_stream_format_says() -> None:
    assert (framing.PAD, framing.EOM, framing.EOD, framing.VOCAB_SIZE) == (256, 257, 258, 264)
    assert [(m.name, m.code, m.som) for m in MODALITIES.values()] == [
        ("text", 0, 259),
        ("image", 1, 260),
        ("audio", 2, 261),
    ]
    assert [m.header_size for m in MODALITIES.values()] == [5, 10, 10]
