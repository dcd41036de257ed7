"""Coding of ids by binary decisions: what an encoder takes, a decoder returns, at its price."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.mixed_rows import KINDS, V, places_of
from torch import Tensor

from bytelm.model.codec_features.state import BYTES, NO_PAYLOAD
from bytelm.model.output_mixing.bit_coder import BitDecoder, BitEncoder
from bytelm.model.output_mixing.mixer import RowMixer, shift_places

Numbers = np.ndarray


def code(
    coder: BitEncoder | BitDecoder,
    kinds: list[int],
    ids: Numbers,
    logits: Tensor,
    ends: tuple[int, ...] = (),
) -> Numbers:
    """Code ids [n, B] of rows of some kinds under logits [n, B, V]; returns the ids.

    Args:
        ends: steps at which the next piece of each row's document begins.
    """
    mixer, rows, coded, begin = RowMixer(len(kinds), 512), np.arange(len(kinds)), [], 0
    for step, (own, of_step) in enumerate(zip(ids, logits, strict=True)):
        if step in ends:
            begin = step
        places = torch.cat([places_of(kind, step - begin) for kind in kinds])
        shift_places(places, begin)
        coded.append(mixer.code(coder, rows, own.astype(np.uint16), of_step, places))
    return np.array(coded)


def encoded(kinds: list[int], ids: Numbers, logits: Tensor, ends: tuple[int, ...] = ()) -> Numbers:
    encoder = BitEncoder()
    assert (code(encoder, kinds, ids, logits, ends) == ids).all()
    return encoder.words()


def random_ids(steps: int, rows: int, most: int = V) -> Numbers:
    generator = np.random.default_rng(steps + most)
    return generator.integers(0, most, (steps, rows))


@pytest.mark.parametrize("spread", [0.0, 3.0, 1e4])
def test_ids_of_all_kinds_come_back(spread: float) -> None:
    """The network is indifferent, of some opinion, or certain, mostly of something else."""
    kinds, ids = list(KINDS.values()), random_ids(150, 4)
    logits = spread * torch.randn(150, 4, V, generator=torch.Generator().manual_seed(2))
    words = encoded(kinds, ids, logits)
    decoder = BitDecoder(words)
    assert (code(decoder, kinds, np.zeros_like(ids), logits) == ids).all()
    assert decoder.is_at_end


def test_ids_that_are_encoded_at_once_come_back_one_by_one() -> None:
    kinds, ids = list(KINDS.values()), random_ids(150, 4)
    logits = torch.randn(150, 4, V, generator=torch.Generator().manual_seed(2))
    encoder, rows = BitEncoder(), np.tile(np.arange(4), 150)
    places = torch.cat([places_of(kind, step) for step in range(150) for kind in kinds])
    RowMixer(4, 512).code(encoder, rows, ids.reshape(-1), logits.flatten(0, 1), places)
    words = encoder.words()
    assert (words == encoded(kinds, ids, logits)).all()
    assert (code(BitDecoder(words), kinds, np.zeros_like(ids), logits) == ids).all()


def test_without_a_payload_ids_take_the_bits_of_the_network() -> None:
    ids = random_ids(400, 2)
    logits = 2.0 * torch.randn(400, 2, V, generator=torch.Generator().manual_seed(3))
    log_p = logits.double().log_softmax(-1).numpy()
    bits = -np.take_along_axis(log_p, ids[:, :, None], 2).sum() / math.log(2)
    assert 32 * len(encoded([NO_PAYLOAD] * 2, ids, logits)) == pytest.approx(bits, abs=64)


def test_certain_bytes_take_next_to_nothing() -> None:
    ids = random_ids(5000, 1, 256)
    logits = torch.full((5000, 1, V), -30.0)
    logits[torch.arange(5000), 0, torch.from_numpy(ids[:, 0])] = 0.0
    assert len(encoded([NO_PAYLOAD], ids, logits)) <= 3


@pytest.mark.parametrize("ids", [0, 1])
def test_a_carry_goes_through_all_words(ids: int) -> None:
    """It comes of a decision, or of the last word alone."""
    encoder = BitEncoder()
    coder, words = encoder.state_for(1)
    words[:3] = 5, 0xFFFFFFFF, 0xFFFFFFFF
    coder["count"], coder["low"] = 3, np.uint64(2**64 - 1)
    code(encoder, [NO_PAYLOAD], np.zeros((ids, 1), np.int64), torch.zeros(ids, 1, V))
    assert encoder.words()[:3].tolist() == [6, 0, 0]


def test_a_stream_without_ids_ends_where_it_begins() -> None:
    assert BitDecoder(BitEncoder().words()).is_at_end


def test_missing_and_further_words_are_noticed() -> None:
    ids, logits = random_ids(50, 1), torch.zeros(50, 1, V)
    words = encoded([BYTES], ids, logits)
    for changed in (words[:-1], np.append(words, np.uint32(0))):
        decoder = BitDecoder(changed)
        code(decoder, [BYTES], ids, logits)
        assert not decoder.is_at_end


@pytest.mark.parametrize("kind", ["text", "pixels", "samples"])
def test_pieces_that_go_on_take_the_words_of_the_whole_document(kind: str) -> None:
    ids = np.resize(random_ids(37, 1, 256), (300, 1))
    logits = torch.zeros(300, 1, V)
    whole = encoded([KINDS[kind]], ids, logits)
    assert (encoded([KINDS[kind]], ids, logits, ends=(96, 192)) == whole).all()
