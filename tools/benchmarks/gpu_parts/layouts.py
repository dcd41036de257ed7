"""Compiled training on packed documents: host synchronisations, and recompilations over layouts.

B   rows of a step          T   ids in a row
K   patches of a row        P   bytes of a patch
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.config import ModelConfig
from bytelm.model.layout import Layout
from bytelm.tools.benchmarks.gpu_parts.scale import Scale, synchronize
from bytelm.tools.benchmarks.gpu_parts.training import make_model
from bytelm.tools.benchmarks.measure import Figure, seconds_of

WARM_UP_LAYOUTS = 2
PATCHES = 20
"""Average length of a document."""


def layout_figures(scale: Scale, size: str) -> Iterator[Figure]:
    """Speed over different layouts of documents, graphs that they make the compiler add, and
    whether forward, loss and backward make the host wait for the device."""
    # Imported here, since it takes seconds, and the process that starts the jobs needs none of it.
    from torch._dynamo.utils import counters

    config = replace(scale.models[size], codec_features=True)
    model = make_model(config, scale, is_compiled=True)
    batches = [packed_batch(config, scale, seed) for seed in range(scale.layouts)]

    def step(batch: tuple[Tensor, Tensor, Tensor, Tensor, Layout]) -> None:
        ids, document, modality, features, layout = batch
        with torch.autocast(scale.device, torch.bfloat16):
            nats = model(ids, document, modality, features, layout=layout)
        nats.mean().backward()

    def all_steps() -> None:
        for batch in batches:
            step(batch)
        synchronize(scale)

    for batch in batches[:WARM_UP_LAYOUTS]:
        step(batch)
    before = counters["stats"]["unique_graphs"]
    seconds = seconds_of(all_steps)
    bytes_ = len(batches) * scale.rows * config.context
    yield Figure(f"layouts/{size}/speed", bytes_ / seconds, "bytes/s")
    graphs = counters["stats"]["unique_graphs"] - before
    yield Figure(f"layouts/{size}/recompilations", graphs, "graphs")
    if scale.device == "cuda":
        error = synchronization_error(lambda: step(batches[0]))
        details = {"error": error} if error else {}
        yield Figure(f"layouts/{size}/synchronisations", bool(error), "found", details=details)


def synchronization_error(step: Callable[[], None]) -> str:
    """The first line of a step that makes the host wait for the GPU, "" where none does."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{frame.filename}:{frame.lineno}: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def packed_batch(
    config: ModelConfig, scale: Scale, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Layout]:
    """Rows of random bytes and documents, as a data worker gives them: ids [B, T], document
    [B, K], modality [B, T], codec features and layout, on the device."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, (scale.rows, config.context), generator=generator)
    document = random_documents(config, scale, seed)
    features = compute_codec_features(ids, document, config.patch)
    layout = Layout.of(document)
    modality = torch.zeros_like(ids, dtype=torch.uint8)
    tensors = (x.to(scale.device) for x in (ids, document, modality, features))
    ids, document, modality, features = tensors
    return ids, document, modality, features, layout.to(torch.device(scale.device))


def random_documents(config: ModelConfig, scale: Scale, seed: int) -> Tensor:
    """Rows packed with documents of PATCHES patches on average, [B, K] int32."""
    generator = torch.Generator().manual_seed(seed)
    shape = (scale.rows, config.context // config.patch)
    return (torch.rand(shape, generator=generator) < 1 / PATCHES).cumsum(1).int()
