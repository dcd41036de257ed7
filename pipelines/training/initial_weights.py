"""The weights that a run begins with: those of `train.initial_model`, in place of drawn ones."""

from __future__ import annotations

import torch

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.load import opened_model
from bytelm.pipelines.checkpoints.pretrained import from_pretrained
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.training.deepspeed_config import zero_stage

FREE_KEYS = frozenset(
    {
        *("dropout", "embedding_std", "init_std", "smooth_bytes"),
        *("output_mixing", "local_chunk", "activation_checkpointing"),
    }
)
"""Keys of a model that say nothing about what its weights compute: they may differ."""


def load_initial_model(config: RunConfig) -> Megabyte | None:
    """Load the model of `train.initial_model` in fp32 on the CPU; None if the key is empty.

    Raises:
        ValueError: if it cannot be loaded, or is of another shape than the config's model.
    """
    location = config.train.initial_model
    if not location:
        return None
    with opened_model(location) as folder:
        initial, _ = from_pretrained(folder)
    differences = _differences(initial.config, config.model)
    if differences:
        raise ValueError(
            f"train.initial_model: {location} has {', '.join(differences)}: give `model` the same"
        )
    return initial


def copy_weights(initial: Megabyte, model: Megabyte, deepspeed: str) -> None:
    """Copy weights into a model that `make_model` made. Every rank has to call it.

    Where the contexts differ, so do the position tables: positions that both have are copied, and
    those that only `model` has stay as they were drawn.

    Args:
        deepspeed: `train.deepspeed` of the run; at ZeRO 3 each rank keeps its part.
    """
    import deepspeed as library

    is_cut = zero_stage(deepspeed) == 3
    weights = dict(initial.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            with library.zero.GatheredParameters([parameter], modifier_rank=0, enabled=is_cut):
                known = min(len(parameter), len(weights[name]))
                parameter[:known].copy_(weights[name][:known])


def _differences(initial: ModelConfig, wanted: ModelConfig) -> list[str]:
    """The keys that the initial model has otherwise. With rotated positions the context is free."""
    free = FREE_KEYS | ({"context"} if wanted.rope else frozenset())
    values = wanted.to_dict()
    return [
        f"model.{key} {value} in place of {values[key]}"
        for key, value in initial.to_dict().items()
        if key not in free and values[key] != value
    ]
