"""Draw a model's weights module by module, for models that no process can hold whole.

The weights are those of `Megabyte(config)`, number for number, from the same state of torch's
generator. The constructor draws twice: first PyTorch's own initial weights as each module is made,
then the model's over them. Here the numbers of the first pass are drawn and dropped, so that the
second pass begins at the same state of the generator.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from bytelm.model.config import ModelConfig
from bytelm.model.layers import Gain
from bytelm.model.megabyte import Megabyte


def draw_by_module(config: ModelConfig, keep: Callable[[nn.Module], None]) -> Megabyte:
    """Make the model of a config, of which one module at a time is whole.

    Args:
        keep: called with each module that has parameters of its own, in order, as soon as they are
            drawn on the CPU. It may replace their data by a part of them.
    """
    with torch.device("meta"):
        model = Megabyte(config)
    _skip_first_draws(model)
    for module in _modules_with_parameters(model):
        if config.tie_embeddings and module is model.lm_head:
            continue  # its parameter is that of the byte embedding, which is drawn
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        if not model.initialise(module):
            assert isinstance(module, nn.LayerNorm | nn.RMSNorm | Gain)
            module.reset_parameters()  # draws nothing
        keep(module)
    model.tie_output()
    return model


def _skip_first_draws(model: Megabyte) -> None:
    """Draw what PyTorch's modules draw in their constructors."""
    modules = [m for m in _modules_with_parameters(model) if m is not model.lm_head]
    for module in modules:
        if isinstance(module, nn.Linear | nn.Conv1d):
            torch.empty(module.weight.shape).uniform_()
        elif isinstance(module, nn.Embedding):
            torch.empty(module.weight.shape).normal_()
    # The head is made as one linear layer, whatever takes its place.
    torch.empty(model.config.vocab_size, model.config.stages[-1].width).uniform_()


def _modules_with_parameters(model: Megabyte) -> Iterator[nn.Module]:
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield module
