"""Regions: the computations between two attentions, which training can compile.

A stage alternates between attention, whose kernels depend on the documents of a batch, and
computations of each position by itself: norms, matrix products, rotations, feed-forward layers,
embeddings. Each such computation is a region. Its shapes are those of every batch of a run, so that
a compiled region is compiled in the first steps and never again, and its weights are inputs of the
graph, so that all blocks of a stage share one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

SHARED_GRAPHS = 64
"""Graphs of one region's code that all its uses may have together: stages, the last chunk's shape,
inputs with and without gradient. PyTorch's default of 8 is for functions with one use."""


class Region(Generic[P, T]):
    """A function of modules and tensors that runs as it is until `compile` is called.

    Regions compiled for training run only where gradients are recorded. Rows that are evaluated
    come in batches of many sizes, each of which would be compiled; evaluated eagerly they also have
    the same nats as in `bytelm evaluate`. Regions compiled for decoding always run, for any number
    of rows.

    Args:
        function: it reads no value of a tensor, and attends to nothing. A method is given as a
            function of its module: bound to one, it would keep that module when copied.
    """

    def __init__(self, function: Callable[P, T]) -> None:
        self._function = function
        self._compiled: Callable[P, T] | None = None
        self._is_for_decoding = False

    def compile(self, backend: str, is_for_decoding: bool = False) -> None:
        """Compile the function from its next call on, by a backend of `torch.compile`."""
        # Imported here, since it takes a second that no other use of a model needs.
        import torch._dynamo.config

        torch._dynamo.config.recompile_limit = SHARED_GRAPHS
        self._compiled = torch.compile(
            self._function, fullgraph=True, dynamic=is_for_decoding, backend=backend
        )
        self._is_for_decoding = is_for_decoding

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result."""
        is_wanted = self._is_for_decoding or torch.is_grad_enabled()
        if self._compiled is None or not is_wanted:
            return self._function(*args, **kwargs)
        return self._compiled(*args, **kwargs)
