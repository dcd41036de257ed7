"""Training steps at up to a million bytes: JSON lines.

    python tools/bench_long.py [--lengths 65536 262144 1048576] [--only step]

One line a figure: `name`, `value`, `unit`, `reference` and `ratio` (value / reference). Two
threads, bf16 autocast, one row that is one document; global 512 wide and 4 layers deep, local 128
wide and 2 deep, P = 32, 64 and 128. A step is forward, backward, clipping and AdamW; every
contestant runs in a process of its own.

    long/N/peak-memory           GB: the most resident memory of the whole process at N bytes;
                                 reference: the 3 GB that it may be
    long/N/matrix-peak           FLOP/s of the step (of what the model needs, not of what
                                 checkpointing computes again) beside those of a 1024 x 1024 x 1024
                                 product in bf16, timed in the same process
    long/N/matrix-peak-causal    the same without the pairs that attention masks
    long/attention-exponent      e of seconds ~ T^e, fitted on the time of all layers' attention,
                                 forward and backward, with P = T^(1/3); reference: 4/3
    long/N/megabyte-pytorch/speed, .../memory    bytes/s and GB of ours beside MEGABYTE-pytorch's,
                                 at the largest of the lengths that it survives in this machine's
                                 free memory
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from bytelm.model.attention import causal_attention
from bytelm.model.flops import causal_training_flops_per_byte, training_flops_per_byte
from bytelm.tools.benchmarks.measure import (
    Figure,
    in_fresh_process,
    matrix_peak,
    peak_resident,
    print_figures,
)
from bytelm.tools.benchmarks.peers import CHUNK_BYTES, HEAD, Shape, build, keep_memory, our_config

SHAPES = {
    length: Shape(length, patch, 512, 4, 128, 2)
    for length, patch in ((65_536, 32), (262_144, 64), (1_048_576, 128))
}
CUBES = (32, 48, 64, 80, 96)
"""P of the rows of P^3 bytes at which attention is timed."""
REPEATS = 5
PEER = "megabyte-pytorch"


@dataclass(frozen=True)
class Step:
    """What one contestant's training step took."""

    seconds: float
    peak: int
    """Bytes of the process at the most."""
    matrix_peak: float


def measure_step(name: str, length: int, limit: int | None = None) -> Step:
    """Two steps of a contestant, the second timed; to run in a fresh process.

    limit: bytes of data that the process may have.
    """
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    keep_memory(name)
    ids = torch.randint(256, (1, length))
    contestant = build(name, SHAPES[length], checkpointing=True)
    contestant.step(ids)
    began = time.perf_counter()
    contestant.step(ids)
    seconds = time.perf_counter() - began
    return Step(seconds, peak_resident(), matrix_peak())


def step_figures(lengths: list[int]) -> Iterator[Figure]:
    """Ours at each length, and the peer's at the largest that it survives."""
    steps = {}
    for length in lengths:
        steps[length] = step = in_fresh_process(measure_step, "bytelm", length)
        config = our_config(SHAPES[length])
        yield f"long/{length}/peak-memory", step.peak / 1e9, "GB", 3.0
        for name, flops in (
            ("matrix-peak", training_flops_per_byte(config)),
            ("matrix-peak-causal", causal_training_flops_per_byte(config)),
        ):
            speed = flops * length / step.seconds
            yield f"long/{length}/{name}", speed, "FLOP/s", step.matrix_peak
    for length in sorted(lengths, reverse=True):
        try:
            theirs = in_fresh_process(measure_step, PEER, length, limit=_available_memory())
        except (RuntimeError, BrokenProcessPool) as error:  # no memory, or killed
            print(f"{PEER} at {length} bytes: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        ours = steps[length]
        name = f"long/{length}/{PEER}"
        yield f"{name}/speed", length / ours.seconds, "bytes/s", length / theirs.seconds
        yield f"{name}/memory", ours.peak / 1e9, "GB", theirs.peak / 1e9
        return


def _available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def attention_figure() -> Figure:
    """The exponent of attention's time in the length of the row."""
    times = {patch**3: in_fresh_process(attention_seconds, patch) for patch in CUBES}
    x = [math.log(length) for length in times]
    y = [math.log(seconds) for seconds in times.values()]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    exponent = covariance / sum((a - middle_x) ** 2 for a in x)
    return "long/attention-exponent", exponent, "", 4 / 3


def attention_seconds(patch: int) -> float:
    """Of all layers' attention in a row of patch^3 bytes, forward and backward, median."""
    keep_memory("bytelm")
    shape = Shape(patch**3, patch, 512, 4, 128, 2)
    chunk = max(1, CHUNK_BYTES // patch)  # patches that run at once
    stages = (
        (1, shape.patches, shape.global_width, shape.global_layers),
        (chunk, patch, shape.local_width, shape.local_layers * shape.patches / chunk),
    )
    return sum(times * _attention_seconds(m, n, width) for m, n, width, times in stages)


def _attention_seconds(sequences: int, places: int, width: int) -> float:
    """Of one layer over `sequences` of `places`."""
    size = (sequences, width // HEAD, places, HEAD)
    q, k, v = torch.randn(3, *size).bfloat16().requires_grad_().unbind()
    gradient = torch.randn(size).bfloat16()
    seconds = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        torch.autograd.grad(causal_attention(q * HEAD**-0.5, k, v), (q, k, v), gradient)
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Training steps at up to a million bytes.")
    parser.add_argument("--only", choices=("step", "attention"), help="one of the two parts")
    parser.add_argument("--lengths", type=int, nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    if options.only != "attention":
        print_figures(step_figures(options.lengths))
    if options.only != "step":
        print_figures([attention_figure()])


if __name__ == "__main__":
    main()
