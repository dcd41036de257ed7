"""Speed and memory of a training step beside other MEGABYTE code: JSON lines.

    python tools/bench_train.py [--only train] [--rounds N]

One line a figure: `name`, `value`, `unit`, `reference` (the other's figure, measured in the same
run) and `ratio` (value / reference). Two threads, bf16 autocast, one row; a step is forward,
backward, clipping and AdamW. `contestants.py` says who runs. Shape: P = 8, global 512 wide and 6
layers deep, local 256 wide and 4 deep.

`train`, at 8,192 bytes: all in one process, a step of each in turn, medians.

    train/PEER           bytes/s
    train-flops/PEER     FLOPs of a training step per byte (ours by formula, theirs counted)
    train/matrix-peak    FLOP/s of our step against those of a 1024 x 1024 x 1024 product in bf16
                         into a preallocated output, timed in the same rounds
    train/matrix-peak-causal   the same without the pairs that attention masks

`train-memory`, at 32,768 bytes with checkpointing (MEGABYTE-pytorch has none): each in a process
of its own, in turn, medians.

    train-memory/PEER    GB: the most resident memory of three steps above that of the process once
                         the model and the optimizer's state exist
    train-memory-speed/PEER   bytes/s, of the same steps
    train-memory/formula, .../formula-checkpointed   GB: what `pipelines.flops.step_bytes` says
                         beside what PyTorch's allocator gave to our forward and backward pass, at
                         8,192 bytes without and at 32,768 with checkpointing
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from statistics import median

import torch

from bytelm.model.flops import causal_training_flops_per_byte, step_bytes, training_flops_per_byte
from bytelm.tools.benchmarks.measure import (
    Figure,
    in_fresh_process,
    matrix_peak,
    peak_allocated,
    peak_resident,
    print_figures,
    reset_peak,
    resident,
    start_process,
)
from bytelm.tools.benchmarks.peers import (
    NAMES,
    PEERS,
    Shape,
    build,
    checkpointed,
    keep_memory,
    our_config,
)

SHORT = Shape(8_192, 8, 512, 6, 256, 4)
LONG = Shape(32_768, 8, 512, 6, 256, 4)
MEMORY_STEPS = 3


def train_figures(rounds: int) -> Iterator[Figure]:
    """Bytes per second and FLOPs per byte of each, and our share of the matrix peak."""
    start_process()
    ids = torch.randint(256, (1, SHORT.context))
    contestants = {name: build(name, SHORT) for name in NAMES}
    flops = {name: contestants[name].counted_flops(ids) / SHORT.context for name in PEERS}
    flops["bytelm"] = training_flops_per_byte(our_config(SHORT))
    causal = causal_training_flops_per_byte(our_config(SHORT))
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    peaks: list[float] = []
    for _ in range(1 + rounds):  # the first warms up
        peaks.append(matrix_peak())
        for name, contestant in contestants.items():
            began = time.perf_counter()
            contestant.step(ids)
            seconds[name].append(time.perf_counter() - began)
    speed = {name: SHORT.context / median(each[1:]) for name, each in seconds.items()}
    peak = median(peaks[1:])
    for peer in PEERS:
        yield f"train/{peer}", speed["bytelm"], "bytes/s", speed[peer]
        yield f"train-flops/{peer}", flops["bytelm"], "FLOP/byte", flops[peer]
    yield "train/matrix-peak", flops["bytelm"] * speed["bytelm"], "FLOP/s", peak
    yield "train/matrix-peak-causal", causal * speed["bytelm"], "FLOP/s", peak


def memory_figures(rounds: int) -> Iterator[Figure]:
    """Peak memory and bytes per second of each, in processes of their own."""
    gigabytes: dict[str, list[float]] = {name: [] for name in NAMES}
    speeds: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            memory, speed = in_fresh_process(memory_and_speed, name)
            gigabytes[name].append(memory)
            speeds[name].append(speed)
    for peer in PEERS:
        yield f"train-memory/{peer}", median(gigabytes["bytelm"]), "GB", median(gigabytes[peer])
        yield (
            f"train-memory-speed/{peer}",
            median(speeds["bytelm"]),
            "bytes/s",
            median(speeds[peer]),
        )
    for name, shape, checkpointing in (
        ("formula", SHORT, False),
        ("formula-checkpointed", LONG, True),
    ):
        config = checkpointed(our_config(shape)) if checkpointing else our_config(shape)
        measured = in_fresh_process(allocated, shape, checkpointing)
        yield f"train-memory/{name}", step_bytes(config) / 1e9, "GB", measured


def allocated(shape: Shape, checkpointing: bool) -> float:
    """The most GB of tensors in our forward and backward pass; to run in a fresh process."""
    ids = torch.randint(256, (1, shape.context))
    contestant = build("bytelm", shape, checkpointing=checkpointing)
    return peak_allocated(lambda: contestant.backward(ids)) / 1e9


def memory_and_speed(name: str) -> tuple[float, float]:
    """Peak memory in GB and bytes per second of one contestant; to run in a fresh process."""
    keep_memory(name)
    ids = torch.randint(256, (1, LONG.context))
    contestant = build(name, LONG, checkpointing=True)
    contestant.make_state()
    level = resident()
    reset_peak()
    seconds = []
    for _ in range(MEMORY_STEPS):
        began = time.perf_counter()
        contestant.step(ids)
        seconds.append(time.perf_counter() - began)
    return (peak_resident() - level) / 1e9, LONG.context / min(seconds[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed and memory of a training step.")
    parser.add_argument("--only", choices=("train", "train-memory"), help="one of the two parts")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each at 8,192 bytes")
    parser.add_argument("--memory-rounds", type=int, default=3, help="processes at 32,768 bytes")
    options = parser.parse_args()
    if options.only != "train-memory":
        print_figures(train_figures(options.rounds))
    if options.only != "train":
        print_figures(memory_figures(options.memory_rounds))


if __name__ == "__main__":
    main()
