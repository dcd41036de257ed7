"""The mixture that ids are drawn from, and that it stays as prompts left it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.mixed_rows import KINDS, V, places_of
from torch import Tensor

from bytelm.model.codec_features.state import BYTES, NO_PAYLOAD, PIXELS, SAMPLES
from bytelm.model.output_mixing.mixer import LEAST_PROMPT, DrawingMixer

PROMPT = LEAST_PROMPT


def prompt_ids(kind: int, count: int = PROMPT) -> Tensor:
    """Bytes with something to predict: words, slopes."""
    if kind == BYTES:
        text = b"the white whale and the white sea and the whale "
        return torch.tensor(list((text * 30)[:count]))
    slope = torch.arange(count) // 6 % 64 + 96
    return slope + torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(1))


def prompt_places(kind: int, count: int) -> Tensor:
    return torch.cat([places_of(kind, 0)[:0], *(places_of(kind, size) for size in range(count))])


def random_logits(count: int) -> Tensor:
    return torch.randn(count, V, generator=torch.Generator().manual_seed(3))


def mixer_behind(kind: int, ids: Tensor, logits: Tensor) -> DrawingMixer:
    mixer = DrawingMixer(1, 2_048)
    mixer.read([0], ids, logits, prompt_places(kind, len(ids)))
    return mixer


def test_outside_of_payloads_the_network_decides() -> None:
    logits = random_logits(1)
    mixed = logits.clone()
    DrawingMixer(1, 2_048).mix(None, mixed, places_of(NO_PAYLOAD, 0))
    assert torch.equal(mixed, logits)


@pytest.mark.parametrize("kind", [BYTES, PIXELS, SAMPLES])
def test_what_is_drawn_teaches_nothing(kind: int) -> None:
    """Bytes that are drawn change what is predicted, and no weight, count or map."""
    mixer = mixer_behind(kind, prompt_ids(kind), random_logits(PROMPT))
    learned = ("weights", "final_weights", "counts", "likelihoods", "hits", "refinements")
    before = {name: getattr(mixer.learned, name).copy() for name in learned}
    drawn: Tensor | None = None
    for step in range(40):
        logits = torch.zeros(1, V)
        mixer.mix(drawn, logits, places_of(kind, PROMPT + step))
        drawn = logits[:, :256].argmax(1)
    for name, array in before.items():
        assert np.array_equal(getattr(mixer.learned, name), array), name


def test_drawn_bytes_are_read_on_from() -> None:
    """A text that repeats goes on behind what was drawn of it, by a network that knows nothing."""
    text = prompt_ids(BYTES)
    mixer = mixer_behind(BYTES, text, torch.zeros(PROMPT, V))
    drawn: Tensor | None = None
    for step, expected in enumerate(prompt_ids(BYTES, PROMPT + 60)[PROMPT:]):
        logits = torch.zeros(1, V)
        mixer.mix(drawn, logits, places_of(BYTES, PROMPT + step))
        drawn = logits[:, :256].argmax(1)
        assert drawn.item() == expected


def test_rows_are_the_same_alone_and_together() -> None:
    kinds = [kind for kind in KINDS.values() if kind != NO_PAYLOAD]
    together = DrawingMixer(len(kinds), 2_048)
    logits = random_logits(PROMPT + 1)
    mixed = logits[-1:].repeat(len(kinds), 1)
    for row, kind in enumerate(kinds):
        ids, places = prompt_ids(kind), prompt_places(kind, PROMPT)
        together.read([row], ids, logits[:-1], places)
    together.mix(None, mixed, torch.cat([places_of(kind, PROMPT) for kind in kinds]))
    for row, kind in enumerate(kinds):
        alone = logits[-1:].clone()
        mixer_behind(kind, prompt_ids(kind), logits[:-1]).mix(None, alone, places_of(kind, PROMPT))
        assert torch.equal(mixed[row : row + 1], alone)


def test_rows_that_share_a_prompt_go_their_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a prompt share what it taught, also over threads, and each mixes as if alone."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    of_network = random_logits(PROMPT + 30)
    rows = {BYTES: [0, 2, 3], PIXELS: [1, 4]}  # of two threads: rows 0 to 2, and 3 and 4
    together = DrawingMixer(5, 2_048)
    kinds = np.empty(5, np.int64)
    for kind, of_kind in rows.items():
        places = prompt_places(kind, PROMPT)
        together.read(of_kind, prompt_ids(kind), of_network[:PROMPT], places)
        kinds[of_kind] = kind
    alone = [mixer_behind(kind, prompt_ids(kind), of_network[:PROMPT]) for kind in kinds]
    drawn: Tensor | None = None
    for step in range(30):
        places = torch.cat([places_of(kind, PROMPT + step) for kind in kinds])
        mixed = of_network[PROMPT + step].repeat(5, 1)
        expected = mixed.clone()
        together.mix(drawn, mixed, places)
        for row, mixer in enumerate(alone):
            of_row = slice(row, row + 1)
            mixer.mix(None if drawn is None else drawn[of_row], expected[of_row], places[of_row])
        assert torch.equal(mixed, expected)
        drawn = torch.randint(0, 256, (5,), generator=torch.Generator().manual_seed(step))


def test_a_payload_that_has_just_begun_is_drawn_from_the_network() -> None:
    """Its mixture has learned nothing, whatever stands before it in the row."""
    mixer, ids, logits = DrawingMixer(1, 4_096), prompt_ids(PIXELS), random_logits(PROMPT + 200)
    text = prompt_ids(BYTES, 200)
    places = torch.cat([prompt_places(PIXELS, PROMPT), prompt_places(BYTES, 200)])
    mixer.read([0], torch.cat([ids, text]), logits, places)
    assert not mixer.is_mixed.any()
    mixer = DrawingMixer(1, 4_096)
    mixer.read([0], ids, logits[:PROMPT], places[:PROMPT])
    assert mixer.is_mixed.all()


def test_a_prompt_that_the_network_predicts_better_is_drawn_from_the_network() -> None:
    ids = torch.randint(0, 256, (PROMPT,), generator=torch.Generator().manual_seed(5))
    logits = torch.nn.functional.one_hot(ids, V).float() * 30
    assert not mixer_behind(BYTES, ids, logits).is_mixed.any()
