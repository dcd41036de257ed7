"""Rows that a CPU draws: from the mixture where their prompts taught it, else from the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_models import options_of, tiny_model
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header
from bytelm.model.decoding.row_drawer import SteppedRows
from bytelm.model.decoding.row_sampler import GuideTables, RowSampler
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.mixer import LEAST_PROMPT

PHRASES = (b"the white whale and the white sea; ", b"call me Ishmael, or what you will. ")


def mixing_model() -> Megabyte:
    options = {**options_of("modern", "two"), "codec_features": True, "output_mixing": True}
    return tiny_model("two", context=2_048, init_std=0.2, **options).eval()


def prompt_of(model: Megabyte, phrase: bytes, size: int) -> Tensor:
    """A text of a phrase again and again, [1, ids]."""
    preamble = framing.preamble(MODALITIES["text"], Header(), "utf8", 0, model.config.patch)
    payload = np.frombuffer((phrase * 100)[:size], np.uint8)
    return torch.from_numpy(np.concatenate([preamble, payload]).astype(np.int64))[None]


def drawn(model: Megabyte, prompts: Tensor, seeds: list[int], temperature: float) -> np.ndarray:
    count, room = 40, [40] * len(prompts)
    guide = GuideTables.of_bytes(model.config.vocab_size)
    sampler = RowSampler(Sampling(temperature), seeds, guide, room, torch.device("cpu"))
    rows = SteppedRows(model, len(prompts), prompts.shape[1] + count, sampler)
    rows.begin(prompts, MODALITIES["text"].code)
    return np.concatenate([rows.draw(n).ids for n in (1, 8, count - 9)], axis=1)


@pytest.mark.parametrize("phrase", PHRASES)
def test_an_untrained_network_goes_on_with_what_repeats(phrase: bytes) -> None:
    model, size = mixing_model(), LEAST_PROMPT + 100
    ids = drawn(model, prompt_of(model, phrase, size), [0], temperature=0.5)[0]
    assert ids.tobytes() == (phrase * 100)[size : size + 40]


@pytest.mark.parametrize("size", [LEAST_PROMPT - 40, 0])
def test_behind_a_short_prompt_the_network_decides(size: int) -> None:
    model = mixing_model()
    prompt = prompt_of(model, PHRASES[0], size)
    mixing = drawn(model, prompt, [0], temperature=0.5)
    model.config = model.config.__class__.from_dict(
        {**model.config.to_dict(), "output_mixing": False}
    )
    assert (drawn(model, prompt, [0], temperature=0.5) == mixing).all()


def test_rows_are_the_same_alone_and_together() -> None:
    model = mixing_model()
    noise = bytes(np.random.default_rng(0).integers(0, 256, 35).astype(np.uint8))
    prompts = [
        prompt_of(model, phrase, LEAST_PROMPT + 10) for phrase in (*PHRASES, noise, PHRASES[0])
    ]
    together = drawn(model, torch.cat(prompts), [3, 4, 5, 6], temperature=1.0)
    for row, prompt in enumerate(prompts):
        alone = drawn(model, prompt, [3 + row], temperature=1.0)
        assert (together[row] == alone[0]).all()
