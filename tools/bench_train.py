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

`train-memory`, at 32,768 bytes with checkpointing (MEGABYTE-pytorch has none): each in a process
of its own, in turn, medians.

    train-memory/PEER    GB: the most resident memory of three steps above that of the process once
                         the model and the optimizer's state exist
    train-memory-speed/PEER   bytes/s, of the same steps
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from statistics import median

import torch

from bytelm.model.flops import training_flops_per_byte
from bytelm.tools.contestants import NAMES, PEERS, Shape, build, our_config
from bytelm.tools.resident import peak_resident, reset_peak, resident

Figure = tuple[str, float, str, float]
"""name, value, unit, reference."""

THREADS = 2
SHORT = Shape(8_192, 8, 512, 6, 256, 4)
LONG = Shape(32_768, 8, 512, 6, 256, 4)
PRODUCT = 1024
PRODUCTS = 50
"""Products of a round."""
MEMORY_STEPS = 3


def train_figures(rounds: int) -> Iterator[Figure]:
    """Bytes per second and FLOPs per byte of each, and our share of the matrix peak."""
    torch.set_num_threads(THREADS)
    ids = torch.randint(256, (1, SHORT.context))
    contestants = {name: build(name, SHORT) for name in NAMES}
    flops = {name: contestants[name].counted_flops(ids) / SHORT.context for name in PEERS}
    flops["bytelm"] = training_flops_per_byte(our_config(SHORT))
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    products = []
    for round_ in range(rounds + 1):
        product = _product_seconds()
        for name, contestant in contestants.items():
            began = time.perf_counter()
            contestant.step(ids)
            if round_ > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
        products.append(product)
    speed = {name: SHORT.context / median(each) for name, each in seconds.items()}
    for peer in PEERS:
        yield f"train/{peer}", speed["bytelm"], "bytes/s", speed[peer]
        yield f"train-flops/{peer}", flops["bytelm"], "FLOP/byte", flops[peer]
    peak = 2 * PRODUCT**3 / median(products[1:])
    yield "train/matrix-peak", flops["bytelm"] * speed["bytelm"], "FLOP/s", peak


def _product_seconds() -> float:
    """Of one product, the mean of PRODUCTS."""
    a, b = torch.randn(2, PRODUCT, PRODUCT).bfloat16()
    out = torch.empty(PRODUCT, PRODUCT, dtype=torch.bfloat16)
    torch.mm(a, b, out=out)
    began = time.perf_counter()
    for _ in range(PRODUCTS):
        torch.mm(a, b, out=out)
    return (time.perf_counter() - began) / PRODUCTS


def memory_figures(rounds: int) -> Iterator[Figure]:
    """Peak memory and bytes per second of each, in processes of their own."""
    gigabytes: dict[str, list[float]] = {name: [] for name in NAMES}
    speeds: dict[str, list[float]] = {name: [] for name in NAMES}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for _ in range(rounds):
            for name in NAMES:
                memory, speed = processes.submit(memory_and_speed, name).result()
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


def memory_and_speed(name: str) -> tuple[float, float]:
    """Peak memory in GB and bytes per second of one contestant; to run in a fresh process."""
    torch.set_num_threads(THREADS)
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
    figures: list[Iterator[Figure]] = []
    if options.only != "train-memory":
        figures.append(train_figures(options.rounds))
    if options.only != "train":
        figures.append(memory_figures(options.memory_rounds))
    for part in figures:
        for name, value, unit, reference in part:
            figure = {"name": name, "value": value, "unit": unit, "reference": reference}
            print(json.dumps({**figure, "ratio": value / reference}), flush=True)


if __name__ == "__main__":
    main()
