"""Decoding as `bytelm generate` does it, beside MEGABYTE-pytorch and the uncached model.

B   rows        t   ids in a row        V   vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header
from bytelm.model.decoding.row_sampler import GuideTables, RowSampler
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.decoding.static_decoder import StaticDecoder
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.generation.generate import generate_payloads
from bytelm.pipelines.generation.request import Request
from bytelm.tools.benchmarks.gpu_parts.scale import Scale
from bytelm.tools.benchmarks.gpu_parts.training import peer_model
from bytelm.tools.benchmarks.measure import Figure, seconds_of

ONE_ROW_AIM, MANY_ROWS_AIM = 2_000.0, 200_000.0
"""Bytes per second of all rows."""
LOGIT_AIM = 1e-2
PEER = "megabyte-pytorch"
PEER_BYTES = 4
WARM_UP_PART = 0.25
"""Part of the bytes that are drawn before the clock starts: graphs are captured there."""
CALLS = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch")
"""Calls of CUDA that start work on the device."""


def decoding_figures(scale: Scale, size: str) -> Iterator[Figure]:
    """Bytes per second of one row, beside MEGABYTE-pytorch, and of many; launches for each byte.

    Then how far cached logits in bf16 are from uncached ones, and how many bytes of rows drawn
    together in fp32 differ from those of each row alone, and from those of the CPU's decoder.
    """
    model = random_model(scale, size)
    one_row = drawing_speed(model, scale, 1)
    yield Figure(f"decode/{size}/1", one_row, "bytes/s", ONE_ROW_AIM)
    many = drawing_speed(model, scale, scale.many_rows)
    yield Figure(f"decode/{size}/{scale.many_rows}", many, "bytes/s", MANY_ROWS_AIM)
    yield Figure(f"decode/{size}/{PEER}", one_row, "bytes/s", peer_speed(scale, size))
    if scale.device == "cuda":
        yield Figure(f"decode/{size}/launches", launches_per_byte(model, scale), "per byte")
    difference = logit_difference(model, scale)
    yield Figure(f"decode/{size}/logits", difference, "of their norm", LOGIT_AIM)
    draw = partial(_draw_fp32, scale)
    together = draw(model, range(scale.agreement_rows))
    alone = b"".join(draw(model, [seed]) for seed in range(scale.agreement_rows))
    yield Figure(f"decode/{size}/fp32-alone", _differing(together, alone), "bytes")
    on_cpu = draw(model.cpu(), range(scale.agreement_rows))
    yield Figure(f"decode/{size}/fp32-cpu", _differing(together, on_cpu), "bytes")


def _draw_fp32(scale: Scale, model: Megabyte, seeds: Sequence[int]) -> bytes:
    request = fixed_request(0, scale.new_bytes)
    return b"".join(generate_payloads(model, request, seeds, Sampling(), "fp32"))


def _differing(first: bytes, second: bytes) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True))


def random_model(scale: Scale, size: str) -> Megabyte:
    """A model of random weights on the device."""
    torch.manual_seed(0)
    with torch.device(scale.device):
        return Megabyte(scale.models[size]).eval()


def fixed_request(prompt: int, new_bytes: int) -> Request:
    """Plain bytes after a prompt of spaces, as many as asked for whatever the model draws."""
    size = prompt + new_bytes
    return Request("text", Header(), ViewsConfig().text, size, b" " * prompt)


def drawing_speed(model: Megabyte, scale: Scale, rows: int) -> float:
    """Bytes per second of all rows, by the path of `bytelm generate` in bf16."""
    request = fixed_request(4 * scale.new_bytes if rows == 1 else 0, scale.new_bytes)
    moments: list[tuple[float, int]] = []  # time and bytes drawn so far

    def advance(drawn: int) -> None:
        moments.append((time.perf_counter(), drawn + (moments[-1][1] if moments else 0)))

    generate_payloads(model, request, range(rows), Sampling(), "bf16", advance=advance, batch=rows)
    end, total = moments[-1]
    start, warm = next(moment for moment in moments if moment[1] >= WARM_UP_PART * total)
    return (total - warm) / (end - start)


def launches_per_byte(model: Megabyte, scale: Scale) -> float:
    """Kernels and graphs that the host starts for each byte of one row, once graphs are there: of
    twice as many bytes less those of as many, so that prompts and captures do not count."""
    counts = []
    for new_bytes in (scale.new_bytes, 2 * scale.new_bytes):
        request = fixed_request(0, new_bytes)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            generate_payloads(model, request, [0], Sampling(), "bf16")
        counts.append(sum(e.count for e in profiler.key_averages() if e.key in CALLS))
    return (counts[1] - counts[0]) / scale.new_bytes


def peer_speed(scale: Scale, size: str) -> float:
    """Bytes per second of one row of MEGABYTE-pytorch's own `generate`, in the middle of the bytes
    that ours draws. It has no cache, so that every byte costs a pass over all preceding ones."""
    patch = scale.models[size].patch
    end = (4 * scale.new_bytes + scale.new_bytes // 2) // patch * patch
    config = replace(scale.models[size], context=end)  # it draws bytes until the row is full
    model: Any = peer_model(PEER, config, scale, is_compiled=False).model.eval()
    prompt = torch.randint(256, (1, end - PEER_BYTES), device=scale.device)
    with torch.autocast(scale.device, torch.bfloat16):
        model.generate(prompt)  # warms up
        return PEER_BYTES / seconds_of(lambda: model.generate(prompt).cpu())


@torch.no_grad()
def logit_difference(model: Megabyte, scale: Scale) -> float:
    """Norm of what the logits of a drawn row differ by from those of the uncached model, both in
    bf16, as part of the norm of the latter."""
    patch, device = model.config.patch, torch.device(scale.device)
    sampler = RowSampler(
        *(Sampling(), [0], GuideTables.of_bytes(model.config.vocab_size)),
        *([scale.new_bytes], device),
    )
    preamble = framing.preamble(MODALITIES["text"], Header(), ViewsConfig().text, 0, patch)
    prompt = torch.from_numpy(preamble.astype(np.int64)).to(device)[None]
    length = prompt.shape[1] + scale.new_bytes
    with torch.autocast(scale.device, torch.bfloat16):
        decoder = StaticDecoder(model, 1, length, sampler)
        decoder.begin(prompt, modality=MODALITIES["text"].code)
        logits = []
        for _ in range(scale.new_bytes):
            logits.append(decoder.logits.clone())  # the next step overwrites them
            decoder.draw(1)
        ids = torch.cat([prompt, decoder.last_ids(scale.new_bytes)], dim=1)
        uncached = model.logits(F.pad(ids, (0, -length % patch)))[:, prompt.shape[1] : length]
    return float((torch.stack(logits, dim=1) - uncached).norm() / uncached.norm())
