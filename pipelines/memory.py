"""What a training step will hold in memory, before it runs.

Activations are counted by running forward and backward of a micro batch on tensors that have
shapes and no data; weights, gradients and optimizer state follow from the ZeRO stage.

    N parameters    W ranks
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Layout, Megabyte
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.optimizer import hidden_matrices

FLOAT = 4
"""Bytes of a weight, a gradient and a number of the optimizer's state."""
PROGRAM = 900_000_000
"""Resident bytes of a rank without a model, as measured: Python, PyTorch, DeepSpeed and what they
load with the first steps."""
HEAP = 1.3
"""What the allocator takes for each byte of activations that is in use, as measured."""
BUCKET = 500_000_000
"""Numbers that DeepSpeed exchanges at once, unless its config says otherwise."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the fullest moment of a step."""

    states: int
    """Weights, gradients, optimizer state and what ZeRO exchanges."""
    activations: int

    @property
    def total(self) -> int:
        """With the program itself."""
        return PROGRAM + self.states + self.activations


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations made and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(storage)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return result

    def _freed(self, size: int) -> None:
        self.bytes -= size


def activation_bytes(config: ModelConfig, rows: int, precision: str) -> int:
    """Of forward and backward of a micro batch whose rows are one document each."""
    if config.modality_heads:  # how many places each head has is in the data; their sum is not
        config = dataclasses.replace(config, modality_heads=0)
    document = torch.arange(rows, dtype=torch.int32)[:, None]
    layout = Layout.of(document, config.context // config.patch)
    with torch.device("meta"):
        model = Megabyte(config)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        model.to_empty(device="cpu")
        order, place = fake.from_tensor(layout.order), fake.from_tensor(layout.place)
        model._layout = lambda *_: Layout(layout.groups, order, place)  # type: ignore[method-assign]
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        ids = torch.zeros(rows, config.context, dtype=torch.int64)
        with _Live() as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                nats = model(ids, fake.from_tensor(document), ids)
            nats.sum().backward()
    return round(HEAP * live.peak)


def memory(config: RunConfig, ranks: int) -> list[Memory]:
    """Of one rank at ZeRO stages 0 to 3, with the optimizer where the weights are.

    DeepSpeed's own estimators take weights and gradients for 16-bit numbers, which these are not.
    """
    activations = activation_bytes(config.model, config.train.micro_batch, config.train.precision)
    numbers, state = _numbers(config)
    bucket = min(numbers, BUCKET)
    whole = [2 * numbers + state, 2 * numbers, numbers + bucket, numbers + bucket]
    parts = [0, 2 * numbers + state, 2 * numbers + state, 3 * numbers + state]
    return [
        Memory(FLOAT * (of_all + of_one // ranks), activations)
        for of_all, of_one in zip(whole, parts, strict=True)
    ]


def checkpoint_bytes(config: RunConfig) -> int:
    """Of a checkpoint: DeepSpeed's weights and their fp32 copy, optimizer, the exported model."""
    numbers, state = _numbers(config)
    return FLOAT * (3 * numbers + state)


def _numbers(config: RunConfig) -> tuple[int, int]:
    """N, and how many numbers the optimizer keeps."""
    with torch.device("meta"):
        model = Megabyte(config.model)
    numbers = sum(p.numel() for p in model.parameters())
    with_one = sum(p.numel() for p in hidden_matrices(model))
    return numbers, 2 * numbers - (with_one if config.optimizer.name == "muon" else 0)
