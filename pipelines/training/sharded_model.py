"""Make the model that a run trains: whole, or at ZeRO 3 in parts, which no rank holds together."""

from __future__ import annotations

from torch import nn

from bytelm.model.initialisation import draw_by_module
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.training.deepspeed_config import deepspeed_config, zero_stage


def make_model(config: RunConfig) -> Megabyte:
    """Draw the initial model of a config from torch's generator. Every rank has to call it.

    The weights are the same at every ZeRO stage. At stage 3 each module is cut up as soon as it is
    drawn: a rank keeps its part on its device.
    """
    if zero_stage(config.train.deepspeed) < 3:
        return Megabyte(config.model)
    import deepspeed

    values = {**deepspeed_config(config.train.deepspeed), "train_micro_batch_size_per_gpu": 1}

    def keep_part(module: nn.Module) -> None:
        deepspeed.zero.Init(module=module, config_dict_or_path=values)

    return draw_by_module(config.model, keep_part)
