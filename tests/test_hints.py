"""Hints: what they say, from whichever ids, and that the stream's headers are read as written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header
from bytelm.model import hints as module
from bytelm.model.hints import AHEAD, BEHIND, HEAD, HINTS, NONE, Cursor, Strides, hints

SEGMENTS = {
    "raster": ("image", Header(width=5, height=4, channels=3), "raster", 60),
    "grey": ("image", Header(width=9, height=7, channels=1), "raster", 63),
    "planar": ("image", Header(width=9, height=3, channels=3), "planar", 81),
    "narrow": ("image", Header(width=2, height=9, channels=1), "raster", 18),
    "wide": ("image", Header(width=300, height=1, channels=1), "raster", 300),
    "tiles": ("image", Header(width=8, height=4, channels=1), "patch", 32),
    "file": ("image", Header(width=8, height=4, channels=1), "file", 40),
    "mono": ("audio", Header(rate=8000, channels=1), "s16be", 64),
    "stereo": ("audio", Header(rate=44100, channels=2), "s16be", 88),
    "u8": ("audio", Header(rate=8000, channels=1), "u8", 40),
    "text": ("text", Header(), "utf8", 50),
}
WITH_HINTS = {"raster", "grey", "planar", "wide", "mono", "stereo"}


def framed(names: list[str], patch: int, skipped: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [1, T] and documents [1, T / P] of one document for each name, the first of them without
    its first `skipped` payload bytes."""
    generator = np.random.default_rng(len(names) + patch)
    rows, documents = [], []
    for number, name in enumerate(names):
        modality, header, view, size = SEGMENTS[name]
        segment = framing.Segment(MODALITIES[modality], header, view, size)
        payload = generator.integers(0, 256, size, dtype=np.uint8)
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
    made = np.full((len(ids), HINTS), NONE)
    (begin, _, _), header = segment.payload.indices(len(ids)), segment.header
    image = segment.modality.name == "image"
    near = header.channels if segment.view == "raster" else 1
    near = near if image else 2 * header.channels
    line = header.width * near
    stop = next((k for k in range(begin, len(ids), patch) if ids[k] > 255), len(ids))
    for at in range(begin, min(stop + patch, len(ids))):

        def id_at(place: int) -> int:
            return int(ids[place]) if place >= begin and ids[place] < 256 else NONE

        def byte(place: int) -> int:
            return max(id_at(place), 0)

        if image:
            made[at, : BEHIND + AHEAD] = [id_at(at - line + o) for o in range(-BEHIND, AHEAD)]
            a, b, c = byte(at - near), byte(at - line), byte(at - near - line)
            made[at, BEHIND + AHEAD :][:2] = (
                min(max(a + b - c, 0), 255),
                sorted((a, b, a + b - c))[1],
            )
            continue
        is_low = (segment.offset + at - begin) % 2
        x = [
            int.from_bytes([byte(q), byte(q + 1)], "big", signed=True)
            for q in (at - is_low - k * near for k in (1, 2, 3))
        ]
        own = byte(at - 1) - 256 * (byte(at - 1) > 127)
        guesses: list[int] = []
        for guess in (x[0], 2 * x[0] - x[1], 3 * x[0] - 3 * x[1] + x[2]):
            guess = min(max(guess, -32768), 32767)
            high, low = guess // 256, guess % 256
            if is_low:
                pair = [guess - 256 * own, high - own + 128]
                guesses += [min(max(value, 0), 255) for value in pair]
            else:
                guesses += [high % 256, low]
        made[at, BEHIND + AHEAD :] = guesses
    return made


@pytest.mark.parametrize("name", sorted(SEGMENTS))
@pytest.mark.parametrize("patch", [1, 3, 4, 8, 16])
def test_hints_are_what_the_headers_say(name: str, patch: int) -> None:
    if SEGMENTS[name][2] == "patch" and patch == 1:
        pytest.skip("a tile of one byte")
    size = SEGMENTS[name][3]
    for skipped in (0, min(3, size // patch) * patch):
        ids, document = framed([name, name], patch, skipped)
        found = hints(ids, document, patch)[0].numpy()
        assert (found != NONE).any() == (name in WITH_HINTS)
        if name in WITH_HINTS:
            for number in (0, 1):
                own = (document[0] == number).repeat_interleave(patch).numpy()
                assert np.array_equal(found[own], expected(ids[0].numpy()[own], patch))


def test_the_openings_and_views_are_the_streams() -> None:
    image, audio = MODALITIES["image"], MODALITIES["audio"]
    assert (image.som, audio.som, framing.PAD) == (module.IMAGE, module.AUDIO, module.PAD)
    assert image.view_code("raster") == module.RASTER
    assert image.view_code("planar") == module.PLANAR
    assert audio.view_code("s16be") == module.S16BE
    assert image.header_size == audio.header_size == HEAD - 1
    for patch in range(1, 40):
        assert module.preamble(patch) * patch == framing.preamble_length(image, patch)


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
    found = hints(ids, document, patch)
    at = data.draw(st.integers(0, ids.shape[1] - 1))
    other = ids.clone()
    other[:, at:] = data.draw(st.sampled_from([3, 256, 257, 259, 260, 261]))
    assert torch.equal(hints(other, document, patch)[:, : at + 1], found[:, : at + 1])

    cursor = Cursor(patch)
    for held in range(ids.shape[1]):
        if held and held % patch == 0:
            cursor.cross(ids[0], held)
        here = torch.full((HINTS,), NONE)
        if cursor.strides:
            here = cursor.strides.next_hints(ids[0, cursor.begin : held])
        assert torch.equal(here, found[0, held].to(here.dtype))


def test_rows_framed_for_a_larger_patch_have_their_hints() -> None:
    """A flat model reads what models with patches read."""
    ids, document = framed(["raster", "mono"], 8)
    flat = hints(ids, document, 1)
    patched = hints(ids, document, 8)
    is_payload = (patched != NONE).any(dim=-1) & (ids < 256)
    assert is_payload.sum() == 60 + 64
    assert torch.equal(flat[is_payload], patched[is_payload])


def test_ids_that_are_no_bytes_give_no_strides() -> None:
    head = [260, 0, 5, 0, 4, 3, 0, 0, 0, 0, 0]
    assert Strides.of(head) == Strides(is_image=True, near=3, line=15, is_odd=False)
    assert Strides.of([*head[:4], 258, *head[5:]]) is None
    assert Strides.of([260, 0, 5, 0, 4, 0, *head[6:]]) is None
    assert Strides.of([259, *head[1:]]) is None
