"""Training steps of `modern-*` beside mblm and MEGABYTE-pytorch of the same shape, on one device.

    B   rows of a step      T   ids in a row
    P   bytes of a patch

A step is forward in bf16, backward, clipping and AdamW. Every row is one document, which costs
attention the most. The peers have no n-grams, cross-patch attention or codec features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.config import ModelConfig
from bytelm.model.flops import causal_training_flops_per_byte, costs, step_bytes
from bytelm.model.layout import Layout
from bytelm.model.megabyte import Megabyte
from bytelm.tools.benchmarks.gpu_parts.scale import (
    Scale,
    clear_device,
    median_seconds,
    peak_gigabytes,
    product_flops,
)
from bytelm.tools.benchmarks.measure import Figure, seconds_of
from bytelm.tools.benchmarks.peers import (
    BenchmarkModel,
    Shape,
    build,
    compile_peer_layers,
)

OURS = "bytelm"
FEATURES = "/codec-features"
CHECKPOINTING: dict[str, Literal[True, "local"]] = {
    "checkpointed": True,
    "checkpointed-local": "local",
}
"""`activation_checkpointing` of the long row."""
LONG_CHUNK_BYTES = 65_536
"""Bytes whose local stage runs at once in the long row."""
COMPILING_WORKERS = 2
"""Processes that each of the jobs that compile side by side starts."""
STATE_BYTES = 12
"""Bytes of a parameter's weight and of AdamW's two averages; `step_bytes` has its gradient."""


def our_steps(scale: Scale, size: str) -> Iterator[Figure]:
    """Our step, eager and compiled, and compiled with codec features."""
    peak = product_flops(scale)
    for is_compiled, codec_features in ((False, False), (True, False), (True, True)):
        config = replace(scale.models[size], codec_features=codec_features, output_mixing=False)
        name = step_name(size, OURS, is_compiled) + FEATURES * codec_features
        yield from _our_step_figures(name, config, scale, is_compiled, peak)


def long_steps(scale: Scale, size: str) -> Iterator[Figure]:
    """Our compiled step of one long row, its local stage in chunks, with checkpointing of all
    stages and of the local one alone."""
    peak = product_flops(scale)
    one_step = replace(scale, rows=1, blocks=1, steps=1)
    for name, checkpointing in CHECKPOINTING.items():
        config = replace(
            scale.models[size],
            context=scale.long_row,
            activation_checkpointing=checkpointing,
            local_chunk=max(1, LONG_CHUNK_BYTES // scale.models[size].patch),
        )
        yield from _our_step_figures(f"long/{size}/{name}", config, one_step, True, peak)


def _our_step_figures(
    name: str, config: ModelConfig, scale: Scale, is_compiled: bool, peak: float
) -> Iterator[Figure]:
    """Speed, part of the product's FLOP/s, and memory beside its formula (on a GPU)."""
    clear_device(scale)
    model = our_model(config, scale, is_compiled)
    ids = random_ids(config, scale)
    seconds = median_seconds(partial(model.update, ids), scale)
    yield _speed(name, ids, seconds)
    flops = causal_training_flops_per_byte(config) * ids.numel() / seconds
    yield Figure(f"{name}/product", flops, "FLOP/s", peak)
    if scale.device == "cuda":
        formula = formula_gigabytes(config, scale.rows)
        yield Figure(f"{name}/memory", peak_gigabytes(), "GB", formula)


def peer_steps(scale: Scale, size: str, peer: str) -> Iterator[Figure]:
    """A peer's step, eager and compiled."""
    for is_compiled in (False, True):
        yield _peer_speed(scale, size, peer, is_compiled)


def _peer_speed(scale: Scale, size: str, peer: str, is_compiled: bool) -> Figure:
    clear_device(scale)
    ids = random_ids(scale.models[size], scale)
    model = peer_model(peer, scale.models[size], scale, is_compiled)
    seconds = median_seconds(partial(model.update, ids), scale)
    return _speed(step_name(size, peer, is_compiled), ids, seconds)


def compile_seconds(scale: Scale, size: str, name: str) -> Iterator[Figure]:
    """Seconds of the first compiled step of a model cut to one layer a stage.

    Deeper models of the same widths find its graphs in the compiler's cache afterwards.
    """
    import torch._inductor.config

    torch._inductor.config.compile_threads = COMPILING_WORKERS
    full = scale.models[size]
    config = replace(full, stages=tuple(replace(stage, layers=1) for stage in full.stages))
    make = our_model if name == OURS else lambda *args: peer_model(name, *args)
    model, ids = make(config, scale, True), random_ids(config, scale)
    yield Figure(f"compile/{size}/{name}", seconds_of(lambda: model.update(ids)), "s")


def step_name(size: str, code: str, is_compiled: bool) -> str:
    """The figure of a training step's speed."""
    return f"train/{size}/{code}/{'compiled' if is_compiled else 'eager'}"


def comparisons(figures: Mapping[str, Figure], size: str, peer: str) -> Iterator[Figure]:
    """Our speed beside a peer's, each at its better of eager and compiled, as far as measured."""
    theirs = _best_speed(figures, size, peer)
    for suffix in ("", FEATURES):
        ours = _best_speed(figures, size, OURS, suffix)
        if ours and theirs:
            yield Figure(f"train/{size}/beside-{peer}{suffix}", ours, "bytes/s", theirs)


def _best_speed(
    figures: Mapping[str, Figure], size: str, code: str, suffix: str = ""
) -> float | None:
    names = [step_name(size, code, is_compiled) + suffix for is_compiled in (False, True)]
    return max((figures[name].value for name in names if name in figures), default=None)


def _speed(name: str, ids: Tensor, seconds: float) -> Figure:
    details = {"ms": 1000 * seconds}
    return Figure(name, ids.numel() / seconds, "bytes/s", details=details)


def make_model(config: ModelConfig, scale: Scale, is_compiled: bool) -> Megabyte:
    """Our model with random weights on the device."""
    torch.manual_seed(0)
    with torch.device(scale.device):
        model = Megabyte(config)
    if is_compiled:
        model.compile_regions(scale.compiler)
    return model


def our_model(config: ModelConfig, scale: Scale, is_compiled: bool) -> BenchmarkModel:
    """Our model behind the training step, for B rows of T ids that are a document each."""
    model = make_model(config, scale, is_compiled)
    document = torch.zeros(scale.rows, 1, dtype=torch.int32)
    features = None
    if config.codec_features:
        ids = torch.randint(256, (scale.rows, config.context))
        features = compute_codec_features(ids, document, config.patch).to(scale.device)
    layout = Layout.of(document).to(torch.device(scale.device))
    document = document.to(scale.device)

    def loss(ids: Tensor) -> Tensor:
        modality = torch.zeros_like(ids, dtype=torch.uint8)
        nats: Tensor = model(ids, document, modality, features, layout=layout)
        return nats.mean()

    return BenchmarkModel(model, loss)


def peer_model(name: str, config: ModelConfig, scale: Scale, is_compiled: bool) -> BenchmarkModel:
    """A peer with the stages, the patch and the context of a config, behind the training step."""
    stage_0, local = config.stages
    shape = Shape(
        config.context, config.patch, stage_0.width, stage_0.layers, local.width, local.layers
    )
    with torch.device(scale.device):
        model = build(name, shape)
    if is_compiled:
        compile_peer_layers(model.model, scale.compiler)
    return model


def random_ids(config: ModelConfig, scale: Scale) -> Tensor:
    """Random bytes as rows, [B, T] int64."""
    return torch.randint(256, (scale.rows, config.context), device=scale.device)


def formula_gigabytes(config: ModelConfig, rows: int) -> float:
    """Memory of weights, gradients, AdamW and activations by `model/flops.py`."""
    parameters = sum(cost.parameters for cost in costs(config))
    return (STATE_BYTES * parameters + step_bytes(config, rows)) / 1e9
