"""A model without weights, and one whose weights are drawn module by module.

The second one is for models that no process can hold whole. Its weights are those of
`Megabyte(config)`, number for number, from the same state of torch's generator. The constructor
draws twice: first PyTorch's own initial weights as each module is made, then the model's over them.
Here the numbers of the first pass are drawn and dropped, so that the second pass begins at the same
state of the generator.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bytelm.model.config import ModelConfig
from bytelm.model.layers import Gain
from bytelm.model.megabyte import Megabyte


def model_without_weights(config: ModelConfig) -> Megabyte:
    """Make the model of a config on the meta device, where tensors have shapes and no numbers."""
    with torch.device("meta"), _WithoutNormals():
        return Megabyte(config)


class _WithoutNormals(TorchFunctionMode):
    """Skips the drawing of normal numbers, for which PyTorch imports its compiler where a tensor
    has no numbers: seconds before a trained model is loaded."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            tensor: Tensor = kwargs["tensor"]
            return tensor
        return func(*args, **kwargs)


def draw_by_module(config: ModelConfig, keep: Callable[[nn.Module], None]) -> Megabyte:
    """Make the model of a config, of which one module at a time is whole.

    Args:
        keep: called with each module that has parameters of its own, in order, as soon as they are
            drawn on the CPU. It may replace their data by a part of them.
    """
    model = model_without_weights(config)
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
