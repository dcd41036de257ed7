"""Training steps at up to a million bytes.

    python -m bytelm.tools.benchmarks.long_context [--lengths 65536 262144 1048576] [--only step]

Prints a JSON line a figure: `name`, `value`, `unit`, `reference` and `ratio` (value / reference).
Two threads, bf16 autocast, one row that is one document; global stage 512 x 4, local stage 128 x 2,
P = 32, 64 and 128. A step is forward, backward, clipping and AdamW; every model runs in a process
of its own. Needs `pip install 'bytelm[bench]'`; takes about eight minutes on two cores.

    long/N/peak-memory           GB: peak resident memory of the whole process at N bytes;
                                 reference: the aim, 3 GB
    long/N/matrix-peak           FLOP/s of the step (of what the model needs, without what
                                 checkpointing computes again); reference: those of a
                                 1024 x 1024 x 1024 product in bf16, timed in the same process
    long/N/matrix-peak-causal    the same without the pairs that attention masks
    long/attention-exponent      e of seconds ~ T^e, fitted on the time of all layers' attention,
                                 forward and backward, with P = T^(1/3); reference: 4/3
    long/N/megabyte-pytorch/speed, .../memory    bytes/s and GB of ours; reference: those of
                                 MEGABYTE-pytorch, at the largest of the lengths that it survives in
                                 this machine's free memory
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median

import torch

from bytelm.model.attention import causal_attention
from bytelm.model.flops import causal_training_flops_per_byte, training_flops_per_byte
from bytelm.tools.benchmarks.measure import (
    Figure,
    in_fresh_process,
    peak_resident,
    print_figures,
    seconds_of,
)
from bytelm.tools.benchmarks.measure_torch import matrix_peak
from bytelm.tools.benchmarks.peers import CHUNK_BYTES, HEAD, Shape, build, our_config, set_allocator

SHAPES = {
    length: Shape(length, patch, 512, 4, 128, 2)
    for length, patch in ((65_536, 32), (262_144, 64), (1_048_576, 128))
}
ATTENTION_PATCHES = (32, 48, 64, 80, 96)
"""P of the rows, of P^3 bytes each, on which attention is timed."""
REPEATS = 5
STEPS = 3
PEER = "megabyte-pytorch"
MEMORY_AIM = 3.0
"""GB."""


@dataclass(frozen=True)
class Step:
    """Measurements of one model's training step."""

    seconds: float
    peak_bytes: int
    """Peak resident memory of the process."""
    matrix_peak: float
    """FLOP/s."""


def measure_step(name: str, length: int, memory_limit: int | None = None) -> Step:
    """Median of `STEPS` steps of a model, after one that warms up; to run in a fresh process.

    Args:
        memory_limit: bytes of data that the process may allocate; None for no limit.
    """
    if memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    set_allocator(name)
    ids = torch.randint(256, (1, length))
    model = build(name, SHAPES[length], checkpointing=True)
    model.step(ids)
    seconds = median(seconds_of(lambda: model.step(ids)) for _ in range(STEPS))
    return Step(seconds, peak_resident(), matrix_peak())


def step_figures(lengths: list[int]) -> Iterator[Figure]:
    """Figures of ours at each length, and of the peer at the largest that it survives."""
    steps = {}
    for length in lengths:
        steps[length] = step = in_fresh_process(measure_step, "bytelm", length)
        config = our_config(SHAPES[length])
        yield Figure(f"long/{length}/peak-memory", step.peak_bytes / 1e9, "GB", MEMORY_AIM)
        for name, flops in (
            ("matrix-peak", training_flops_per_byte(config)),
            ("matrix-peak-causal", causal_training_flops_per_byte(config)),
        ):
            speed = flops * length / step.seconds
            yield Figure(f"long/{length}/{name}", speed, "FLOP/s", step.matrix_peak)
    for length in sorted(lengths, reverse=True):
        try:
            peer = in_fresh_process(measure_step, PEER, length, memory_limit=_available_memory())
        except (RuntimeError, BrokenProcessPool) as error:  # out of memory, or killed
            print(f"{PEER} at {length} bytes: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        ours, name = steps[length], f"long/{length}/{PEER}"
        yield Figure(f"{name}/speed", length / ours.seconds, "bytes/s", length / peer.seconds)
        yield Figure(f"{name}/memory", ours.peak_bytes / 1e9, "GB", peer.peak_bytes / 1e9)
        return


def _available_memory() -> int:
    """Bytes that Linux could give to a new process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def attention_figure() -> Figure:
    """Exponent of attention's time in the length of the row, by least squares of the logarithms."""
    times = {patch**3: in_fresh_process(attention_seconds, patch) for patch in ATTENTION_PATCHES}
    x = [math.log(length) for length in times]
    y = [math.log(seconds) for seconds in times.values()]
    exponent, _ = linear_regression(x, y)
    return Figure("long/attention-exponent", exponent, "", 4 / 3)


def attention_seconds(patch: int) -> float:
    """Seconds of all layers' attention in a row of patch^3 bytes, forward and backward."""
    set_allocator("bytelm")
    shape = Shape(patch**3, patch, 512, 4, 128, 2)
    chunk = max(1, CHUNK_BYTES // patch)  # patches that run at once
    local_calls = shape.local_layers * shape.patches / chunk
    return shape.global_layers * _layer_seconds(
        1, shape.patches, shape.global_width
    ) + local_calls * _layer_seconds(chunk, patch, shape.local_width)


def _layer_seconds(sequences: int, positions: int, width: int) -> float:
    """Median seconds of one layer's attention over sequences of `positions` each."""
    size = (sequences, width // HEAD, positions, HEAD)
    q, k, v = torch.randn(3, *size).bfloat16().requires_grad_().unbind()
    gradient = torch.randn(size).bfloat16()

    def attend() -> None:
        torch.autograd.grad(causal_attention(q * HEAD**-0.5, k, v), (q, k, v), gradient)

    return median([seconds_of(attend) for _ in range(1 + REPEATS)][1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Training steps at up to a million bytes.")
    parser.add_argument("--only", choices=("step", "attention"), help="one of the two parts")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        choices=SHAPES,
        default=list(SHAPES),
        help="bytes of the row; the default is all",
    )
    options = parser.parse_args()
    if options.only != "attention":
        print_figures(step_figures(options.lengths))
    if options.only != "step":
        print_figures([attention_figure()])


if __name__ == "__main__":
    main()
