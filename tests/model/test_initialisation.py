"""A model drawn module by module is the one that its constructor draws."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_models import OPTIONS, SHAPES, options_of, tiny_config
from torch import nn

from bytelm.model.initialisation import draw_by_module
from bytelm.model.megabyte import Megabyte


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_drawn_module_by_module_are_those_of_the_constructor(option: str) -> None:
    for shape in SHAPES:
        config = tiny_config(shape, **options_of(option, shape))
        torch.manual_seed(5)
        expected = Megabyte(config)
        torch.manual_seed(5)
        drawn = draw_by_module(config, lambda module: None)
        assert drawn.state_dict().keys() == expected.state_dict().keys()
        for name, weight in expected.state_dict().items():
            assert torch.equal(drawn.state_dict()[name], weight), (shape, name)
        is_tied = drawn.lm_head.weight is drawn.stages[-1].byte_embed.weight
        assert is_tied == config.tie_embeddings


def test_only_one_module_is_whole_at_a_time() -> None:
    """Each module gives its weights away as soon as it is drawn."""
    whole: list[int] = []

    def drop(module: nn.Module) -> None:
        whole.append(sum(p.numel() for p in module.parameters(recurse=False)))
        for parameter in module.parameters(recurse=False):
            parameter.data = torch.empty(0)

    model = draw_by_module(tiny_config("three"), drop)
    assert all(p.numel() == 0 for p in model.parameters())
    assert sum(whole) == sum(p.numel() for p in Megabyte(tiny_config("three")).parameters())
