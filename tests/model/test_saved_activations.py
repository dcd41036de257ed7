"""Autocast keeps bf16 for the backward pass, except where fp32 is needed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bytelm.model.megabyte import Megabyte
from bytelm.model.presets import PRESETS


def test_only_norm_inputs_and_log_probabilities_are_kept_in_fp32() -> None:
    """The residual stream is fp32, so each norm keeps its input in fp32, and so are nats."""
    config = replace(PRESETS["modern-1m"], context=256, ngram_table_size=64)
    model = Megabyte(config)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in own:
            kept.setdefault(storage, tensor)
        return tensor

    ids = torch.randint(0, 256, (1, config.context))
    document = torch.zeros(1, 1, dtype=torch.int32)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model(ids, document, torch.zeros_like(ids, dtype=torch.uint8))
    expected = config.context * config.vocab_size  # values of the log-probabilities
    for index, stage in enumerate(config.stages):
        positions = config.context // config.position_bytes(index)
        norms = 2 * stage.layers + 1
        expected += positions * norms * (stage.width + 2)  # with their mean and deviation
    values = {torch.float32: 0, torch.bfloat16: 0}
    for tensor in kept.values():
        if tensor.dtype in values:
            values[tensor.dtype] += tensor.untyped_storage().nbytes() // tensor.element_size()
    assert values[torch.float32] <= 1.02 * expected
    assert values[torch.bfloat16] > 3 * values[torch.float32]
