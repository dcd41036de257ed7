"""Ways to compute attention on a GPU, forward and backward: within a patch and the one before it,
as the local stage does, and within documents, as stage 0 does.

    S   positions laid flat      M   sequences       n   positions of a sequence
    r   last positions of the preceding sequence that a position also attends to
    H   heads of c channels
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bytelm.model.attention import causal_bias, varlen_causal_attention
from bytelm.model.attention_context import PackedContext
from bytelm.model.attention_short import short_attention
from bytelm.model.layout import Layout
from bytelm.tools.benchmarks.gpu_parts.layouts import random_documents
from bytelm.tools.benchmarks.gpu_parts.scale import Scale, clear_device, median_seconds
from bytelm.tools.benchmarks.measure import Figure

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of scaled queries, [S, H, c] to [S, H, c]."""
TOLERANCE = 2e-2
"""Largest relative difference of the norms of two ways' outputs in bf16."""


def attention_figures(scale: Scale, size: str) -> Iterator[Figure]:
    """Milliseconds of a layer's attention, forward and backward, by each way."""
    config = scale.models[size]
    stage_0, local = config.stages
    positions, n = scale.rows * config.context, config.patch
    opens = torch.zeros(positions // n, dtype=torch.bool, device=scale.device)
    opens[:: config.context // n] = True  # a row is one document
    ways = local_ways(scale, n, config.cross_patch_keys(1), opens)
    yield from _timed("local", ways, (positions, local.heads, local.width // local.heads), scale)
    document = random_documents(config, scale, seed=0)
    layout = Layout.of(document).to(torch.device(scale.device))
    shape = (positions // n, stage_0.heads, stage_0.width // stage_0.heads)
    yield from _timed("documents", document_ways(scale, layout), shape, scale)


def _timed(
    name: str, ways: Mapping[str, Attend], shape: tuple[int, ...], scale: Scale
) -> Iterator[Figure]:
    """A figure for each way; raises ValueError where one differs from the first."""
    q, k, v, gradient = torch.randn(4, *shape, device=scale.device).bfloat16()
    has_backward = scale.device == "cuda"  # flex attention has none on a CPU
    inputs = tuple(x.clone().requires_grad_(has_backward) for x in (q * shape[-1] ** -0.5, k, v))
    run = partial(_pass, gradient=gradient) if has_backward else _call
    expected: Tensor | None = None
    for way, attend in ways.items():
        clear_device(scale)
        output = attend(*inputs).detach().float()
        expected = output if expected is None else expected
        difference = float((output - expected).norm() / expected.norm())
        if difference > TOLERANCE:
            raise ValueError(f"{name}: {way} differs from the first way by {difference:.3f}")
        seconds = median_seconds(partial(run, attend, inputs), scale)
        yield Figure(f"attention/{name}/{way}", 1000 * seconds, "ms")


def _call(attend: Attend, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    attend(*inputs)


def _pass(attend: Attend, inputs: tuple[Tensor, Tensor, Tensor], gradient: Tensor) -> None:
    torch.autograd.grad(attend(*inputs), inputs, gradient)


def local_ways(scale: Scale, n: int, r: int, opens: Tensor) -> dict[str, Attend]:
    """Attention within M sequences of n and to the last r positions of the one before.

    Args:
        opens: [M] bool, sequences that attend to no preceding one.
    """
    causal = causal_bias(torch.empty(0, device=opens.device, dtype=torch.bfloat16), n, r)
    bias = causal.repeat(len(opens), 1, 1)  # [M, n, r + n]
    bias[:, :, :r].masked_fill_(opens[:, None, None], -torch.inf)
    bias = bias[:, None]

    def with_earlier(x: Tensor) -> Tensor:  # [S, H, c] to [M, H, r + n, c]
        return rearrange(F.pad(x, (0, 0, 0, 0, r, 0)).unfold(0, r + n, n), "M H c k -> M H k c")

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = rearrange(q, "(M n) H c -> M H n c", n=n)
        output = F.scaled_dot_product_attention(
            q, with_earlier(k), with_earlier(v), attn_mask=bias, scale=1.0
        )
        return rearrange(output, "M H n c -> (M n) H c")

    def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = rearrange(q, "(M n) H c -> M H n c", n=n)
        weights = (q @ with_earlier(k).mT + bias).softmax(dim=-1)
        return rearrange(weights @ with_earlier(v), "M H n c -> (M n) H c")

    def first_key(position: Tensor) -> Tensor:
        sequence = position // n
        return sequence * n - torch.where(opens[sequence], 0, r)

    def mask(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first_key(query))

    ways: dict[str, Attend] = {"products": products, "sdpa": fused}
    if scale.device == "cuda":
        ways["triton"] = partial(short_attention, n=n, r=r, opens_document=opens)
    ways["compiled-products"] = torch.compile(products, backend=scale.compiler)
    return {**ways, "flex": _flex(scale, mask, n * len(opens))}


def document_ways(scale: Scale, layout: Layout) -> dict[str, Attend]:
    """Attention within documents, which a layout lays one after another."""
    lengths = layout.cu_seqlens.diff()
    documents = torch.arange(len(lengths), device=lengths.device)
    document = documents.repeat_interleave(lengths)  # [S]

    def mask(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (document[query] == document[key])

    ways: dict[str, Attend] = {"grouped": PackedContext(layout.groups).attend}
    if scale.device == "cuda":
        ways["varlen"] = partial(
            varlen_causal_attention, cu_seqlens=layout.cu_seqlens, longest=layout.groups[-1][1]
        )
    return {**ways, "flex": _flex(scale, mask, len(document))}


def _flex(scale: Scale, mask: Callable[..., Tensor], positions: int) -> Attend:
    """Flex attention over all positions, of which a mask leaves the keys of each query."""
    # Imported here, since it takes seconds, and the process that starts the jobs needs none of it.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    on_gpu = scale.device == "cuda"  # where the whole mask would take gigabytes, if not compiled
    blocks = create_block_mask(
        mask, None, None, positions, positions, device=scale.device, _compile=on_gpu
    )
    compiled = torch.compile(flex_attention, backend=scale.compiler)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(x, "S H c -> 1 H S c") for x in (q, k, v))
        output: Tensor = compiled(q, k, v, block_mask=blocks, scale=1.0)
        return rearrange(output, "1 H S c -> S H c")

    return attend
