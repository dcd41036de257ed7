"""Run `bytelm` with a model whose results are NaN for a document with byte 1.

    python poisoned.py FORWARD|BACKWARD ARGUMENTS OF bytelm

FORWARD makes the nats NaN, BACKWARD only the gradient.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.cli.main import main

POISON = 1


class NanGradient(torch.autograd.Function):
    """The identity, with a gradient of NaN."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.nan


def poison(where: str) -> None:
    """Patch the model's forward pass."""
    forward = Megabyte.forward

    def poisoned(self: Megabyte, ids: Tensor, *rest: Any) -> Tensor:
        nats = forward(self, ids, *rest)
        if not (ids == POISON).any():
            return nats
        return nats * torch.nan if where == "FORWARD" else NanGradient.apply(nats)

    Megabyte.forward = poisoned  # type: ignore[method-assign]


if __name__ == "__main__":
    poison(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
