"""A copy of a model that learns from a document."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_models import OPTIONS, SHAPES, opened, options_of, tiny_config

from bytelm.model.adaptation import Adaptation, Learner
from bytelm.model.megabyte import Megabyte


@pytest.mark.parametrize("option", ["paper", "modern", "all"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_logits_are_those_of_the_whole_document(shape: str, option: str) -> None:
    torch.manual_seed(0)
    model = Megabyte(tiny_config(shape, 96, **options_of(option, shape))).eval()
    ids = opened(torch.randint(0, 256, (1, 96)))
    modality = torch.ones(1, 96, dtype=torch.uint8)
    whole = model.logits(ids, None, modality)[0]
    for first in (0, 8, 64, 88):
        last = model.last_logits(ids, modality, None, first)
        torch.testing.assert_close(last, whole[first:], rtol=1e-4, atol=1e-5)


def test_steps_are_the_same_to_the_last_bit_and_leave_the_model() -> None:
    torch.manual_seed(0)
    model = Megabyte(tiny_config("two", 48, **OPTIONS["modern"])).eval()
    ids = opened(torch.randint(0, 256, (1, 48)))
    modality = torch.ones(1, 48, dtype=torch.uint8)
    before = model.logits(ids).detach()
    results = []
    for _ in range(2):
        learner = Learner(model, Adaptation(0.01, 48, 16))
        for _ in range(3):
            logits = learner.logits(ids, modality, None, 16)
            learner.learn(logits, ids[0, 16:], torch.ones(32, dtype=torch.bool))
        results.append(learner.logits(ids, modality, None, 0).detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(before, model.logits(ids))
    targets = ids[0, 16:]
    after, plain = (
        torch.nn.functional.cross_entropy(x[16:], targets) for x in (results[0], before[0])
    )
    assert after < plain - 0.1


def test_a_window_without_new_ids_changes_nothing() -> None:
    model = Megabyte(tiny_config("two", 48)).eval()
    learner = Learner(model, Adaptation(0.01, 48, 16))
    ids, modality = torch.zeros(1, 48, dtype=torch.int64), torch.ones(1, 48, dtype=torch.uint8)
    logits = learner.logits(ids, modality, None, 0)
    learner.learn(logits, ids[0], torch.zeros(48, dtype=torch.bool))
    assert torch.equal(logits, learner.logits(ids, modality, None, 0))
