"""Speed and memory of a training step beside other MEGABYTE code.

    python -m bytelm.tools.benchmarks.train_step [--only train] [--rounds N]

Prints a JSON line a figure: `name`, `value`, `unit`, `reference` (the peer's figure, measured in
the same run) and `ratio` (value / reference). Two threads, bf16 autocast, one row; a step is
forward, backward, clipping and AdamW. `peers.py` builds the models: P = 8, global stage 512 x 6,
local stage 256 x 4. Needs `pip install 'bytelm[bench]'`; takes about five minutes on two cores.

`train`, at 8,192 bytes: all models in one process, a step of each in turn, medians.

    train/PEER           bytes/s
    train-flops/PEER     FLOPs of a training step per byte (ours by formula, the peers' counted)
    train/matrix-peak    FLOP/s of our step; reference: those of a 1024 x 1024 x 1024 product in
                         bf16 into a preallocated output, timed in the same rounds
    train/matrix-peak-causal   the same without the pairs that attention masks

`train-memory`, at 32,768 bytes with checkpointing (MEGABYTE-pytorch has none): each model in a
process of its own, in turn, medians.

    train-memory/PEER    GB: peak resident memory of three steps, less what is resident once the
                         model and the optimizer's state exist
    train-memory-speed/PEER   bytes/s of the same steps
    train-memory/formula, .../formula-checkpointed   GB of our forward and backward pass by
                         `model.flops.step_bytes`; reference: the peak of PyTorch's allocator, at
                         8,192 bytes without and at 32,768 with checkpointing
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from statistics import median

import torch

from bytelm.model.flops import causal_training_flops_per_byte, step_bytes, training_flops_per_byte
from bytelm.tools.benchmarks.measure import (
    Figure,
    in_fresh_process,
    peak_resident,
    print_figures,
    reset_peak,
    resident,
    seconds_of,
    set_threads,
)
from bytelm.tools.benchmarks.measure_torch import counted_flops, matrix_peak, peak_allocated
from bytelm.tools.benchmarks.peers import (
    LONG,
    NAMES,
    PEERS,
    SHORT,
    Shape,
    build,
    checkpointed,
    our_config,
    set_allocator,
)

MEMORY_STEPS = 3


def train_figures(rounds: int) -> Iterator[Figure]:
    """Bytes per second and FLOPs per byte of each model, and our part of the matrix peak."""
    set_threads()
    ids = torch.randint(256, (1, SHORT.context))
    models = {name: build(name, SHORT) for name in NAMES}
    flops = {"bytelm": training_flops_per_byte(our_config(SHORT))}
    for peer in PEERS:
        flops[peer] = counted_flops(partial(models[peer].backward, ids)) / SHORT.context
        models[peer].optimizer.zero_grad()
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    peaks: list[float] = []
    for _ in range(1 + rounds):  # the first warms up
        peaks.append(matrix_peak())
        for name, model in models.items():
            seconds[name].append(seconds_of(partial(model.step, ids)))
    speed = {name: SHORT.context / median(times[1:]) for name, times in seconds.items()}
    peak = median(peaks[1:])
    for peer in PEERS:
        yield Figure(f"train/{peer}", speed["bytelm"], "bytes/s", speed[peer])
        yield Figure(f"train-flops/{peer}", flops["bytelm"], "FLOP/byte", flops[peer])
    causal_flops = causal_training_flops_per_byte(our_config(SHORT))
    yield Figure("train/matrix-peak", flops["bytelm"] * speed["bytelm"], "FLOP/s", peak)
    yield Figure("train/matrix-peak-causal", causal_flops * speed["bytelm"], "FLOP/s", peak)


def memory_figures(rounds: int) -> Iterator[Figure]:
    """Peak memory and bytes per second of each model in processes of its own."""
    gigabytes: dict[str, list[float]] = {name: [] for name in NAMES}
    speeds: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            memory, speed = in_fresh_process(measure_memory_and_speed, name)
            gigabytes[name].append(memory)
            speeds[name].append(speed)
    memory_of = {name: median(values) for name, values in gigabytes.items()}
    speed_of = {name: median(values) for name, values in speeds.items()}
    for peer in PEERS:
        yield Figure(f"train-memory/{peer}", memory_of["bytelm"], "GB", memory_of[peer])
        yield Figure(f"train-memory-speed/{peer}", speed_of["bytelm"], "bytes/s", speed_of[peer])
    for name, shape, checkpointing in (
        ("formula", SHORT, False),
        ("formula-checkpointed", LONG, True),
    ):
        config = checkpointed(our_config(shape)) if checkpointing else our_config(shape)
        measured = in_fresh_process(measure_allocated, shape, checkpointing)
        yield Figure(f"train-memory/{name}", step_bytes(config) / 1e9, "GB", measured)


def measure_allocated(shape: Shape, checkpointing: bool) -> float:
    """Peak GB of tensors in our forward and backward pass; to run in a fresh process."""
    ids = torch.randint(256, (1, shape.context))
    model = build("bytelm", shape, checkpointing=checkpointing)
    return peak_allocated(lambda: model.backward(ids)) / 1e9


def measure_memory_and_speed(name: str) -> tuple[float, float]:
    """Peak memory in GB and bytes per second of one model; to run in a fresh process."""
    set_allocator(name)
    ids = torch.randint(256, (1, LONG.context))
    model = build(name, LONG, checkpointing=True)
    model.make_optimizer_state()
    resident_before = resident()
    reset_peak()
    seconds = [seconds_of(lambda: model.step(ids)) for _ in range(MEMORY_STEPS)]
    return (peak_resident() - resident_before) / 1e9, LONG.context / min(seconds[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed and memory of a training step.")
    parser.add_argument("--only", choices=("train", "train-memory"), help="one of the two parts")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each model at 8,192 bytes")
    parser.add_argument(
        "--memory-rounds", type=int, default=3, help="processes of each model at 32,768 bytes"
    )
    options = parser.parse_args()
    if options.only != "train-memory":
        print_figures(train_figures(options.rounds))
    if options.only != "train":
        print_figures(memory_figures(options.memory_rounds))


if __name__ == "__main__":
    main()
