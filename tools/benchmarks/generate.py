"""Speed of decoding beside MEGABYTE-pytorch, the memory's limit and a flat decoder: JSON lines.

    python tools/bench_generate.py [--only FIGURE]

One line a figure: `name`, `value`, `unit`, `reference` (measured in the same run) and `ratio`
(value / reference). Two threads, random weights, the shape of `bench_train.py`, the bytes after a
prompt of 2,048.

    generate/batch1/megabyte-pytorch    bytes/s of 512 bytes of one row, the prompt's time included
    generate/batch64/megabyte-pytorch   bytes/s of 64 rows together, in bf16, of the steps alone

        The reference is MEGABYTE-pytorch 0.3.6's own `generate`. It has no cache, so that each
        byte costs a pass over all bytes before it: it makes a few bytes that end in the middle of
        the 512, and its speed is that of each of them.

    generate/batch1/memory-limit        bytes/s of one row in fp32; the reference would read the
                                        weights and caches that a byte needs at the speed of a copy
                                        (bytes read and written)
    generate/flat/1, generate/flat/16   bytes/s of all rows, MEGABYTE beside a decoder of one stage
                                        of at most a quarter of its parameters, at equal training
                                        FLOPs per byte (of pairs that are not masked), at three
                                        quarters of a row
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.flops import causal_training_flops_per_byte, costs
from bytelm.model.megabyte import Megabyte
from bytelm.tools.benchmarks.peers import HEAD, PAD_ID, VOCAB_SIZE, our_config
from bytelm.tools.benchmarks.train_step import SHORT

Figure = tuple[str, float, str, float]
"""name, value, unit, reference."""

THREADS = 2
PROMPT = 2_048
NEW = 512
ROWS = 64
COPIED = 2**28
"""Bytes of the tensor that is copied."""


def against_megabyte_pytorch(rows: int) -> Iterator[Figure]:
    """Bytes per second of all rows."""
    model = Megabyte(our_config(SHORT)).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=rows > 1):
        decoder = Decoder(model, rows, PROMPT + NEW)
        began = time.perf_counter()
        decoder.prefill(list(torch.randint(256, (rows, PROMPT))))
        if rows > 1:
            began = time.perf_counter()
        _steps(decoder, NEW)
        ours = rows * NEW / (time.perf_counter() - began)
    yield f"generate/batch{rows}/megabyte-pytorch", ours, "bytes/s", _their_speed(rows)


def _their_speed(rows: int) -> float:
    from MEGABYTE_pytorch import MEGABYTE

    middle = PROMPT + NEW // 2
    made = 8 if rows == 1 else 1
    model = MEGABYTE(
        num_tokens=VOCAB_SIZE,
        dim=(SHORT.global_width, SHORT.local_width),
        depth=(SHORT.global_layers, SHORT.local_layers),
        max_seq_len=(middle // SHORT.patch, SHORT.patch),  # it stops there
        pad_id=PAD_ID,
        flash_attn=True,
    ).eval()
    prime = torch.randint(256, (rows, middle - made))
    model.generate(prime[:1, : middle - 1])  # warms up; `generate` fills the row
    began = time.perf_counter()
    model.generate(prime)
    return rows * made / (time.perf_counter() - began)


def against_memory() -> Iterator[Figure]:
    """One row beside a memory that only reads what a byte needs."""
    config = our_config(SHORT)
    stages, output = costs(config)[:-1], costs(config)[-1]
    read = 4.0 * output.parameters
    for index, stage in enumerate(stages):
        tables = VOCAB_SIZE * config.byte_width(index)
        shape, of_bytes = config.stages[index], config.position_bytes(index)
        seen = (PROMPT + NEW / 2) / SHORT.patch
        if index == 0:
            tables += config.context * config.byte_width(0)
        else:
            seen = (SHORT.patch + 1) / 2
        cached = 2 * shape.layers * shape.width * seen
        read += 4.0 * (stage.parameters - tables + cached) / of_bytes
    speed = _speed(config, 1, PROMPT, NEW)
    yield "generate/batch1/memory-limit", speed, "bytes/s", _copy_bandwidth() / read


def _copy_bandwidth() -> float:
    """Bytes read and written each second."""
    source = torch.ones(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPIED / _median_seconds(lambda: target.copy_(source), 7)


FLAT = ModelConfig(
    stages=(StageConfig(256, 12, 256 // HEAD),),
    patch_sizes=(),
    context=2_048,
    tie_embeddings=False,
    init_std=0.05,
)
"""Twelve layers, as the smallest decoders have, just so wide that its weights and keys leave the
processor's cache. Wider ones gain on ours at one row, where both wait for equally many weights."""
DEEP = ModelConfig(
    stages=(StageConfig(1024, 9, 1024 // HEAD), StageConfig(256, 2, 256 // HEAD)),
    patch_sizes=(8,),
    context=2_048,
    tie_embeddings=False,
    init_std=0.05,
)
"""A local stage as wide as the flat decoder, so short that it stays in the cache and costs few
calls. What this saves goes to the global stage, which runs every eighth byte and so can be wide."""


def against_flat(rows: int) -> Iterator[Figure]:
    """Both in fp32 through the same engine, in turn, around three quarters of a row."""
    parameters = [sum(cost.parameters for cost in costs(config)) for config in (DEEP, FLAT)]
    assert parameters[0] >= 4 * parameters[1], parameters
    flops = [causal_training_flops_per_byte(config) for config in (DEEP, FLAT)]
    assert 0.95 < flops[0] / flops[1] < 1.05, flops
    begin, turns, new = 1_408, 8, 32
    decoders = [_started(config, rows, begin, turns * new) for config in (DEEP, FLAT)]
    seconds: list[list[float]] = [[], []]
    for _ in range(turns):
        for decoder, own in zip(decoders, seconds, strict=True):
            began = time.perf_counter()
            _steps(decoder, new)
            own.append(time.perf_counter() - began)
    ours, flat = (rows * new / median(own) for own in seconds)
    yield f"generate/flat/{rows}", ours, "bytes/s", flat


def _speed(config: ModelConfig, rows: int, prompt: int, new: int) -> float:
    """Bytes per second of all rows, of the steps alone."""
    decoder = _started(config, rows, prompt, new)
    began = time.perf_counter()
    _steps(decoder, new)
    return rows * new / (time.perf_counter() - began)


def _started(config: ModelConfig, rows: int, prompt: int, new: int) -> Decoder:
    """A decoder whose rows hold prompts and have room for `new` bytes."""
    decoder = Decoder(Megabyte(config).eval(), rows, prompt + new)
    decoder.prefill(list(torch.randint(256, (rows, prompt))))
    return decoder


def _steps(decoder: Decoder, count: int) -> None:
    """Greedily, the first logits being no matter."""
    ids = torch.zeros(decoder.batch, dtype=torch.int64)
    for _ in range(count):
        ids = decoder.step(ids).argmax(dim=1)


def _median_seconds(run: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


FIGURES: dict[str, Callable[[], Iterator[Figure]]] = {
    "batch1": lambda: against_megabyte_pytorch(1),
    "memory-limit": against_memory,
    "flat/1": lambda: against_flat(1),
    "flat/16": lambda: against_flat(16),
    "batch64": lambda: against_megabyte_pytorch(ROWS),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of decoding.")
    parser.add_argument("--only", choices=FIGURES, help="one of the figures")
    only = parser.parse_args().only
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    for name in [only] if only else FIGURES:
        for figure, value, unit, reference in FIGURES[name]():
            line = {"name": figure, "value": value, "unit": unit, "reference": reference}
            print(json.dumps({**line, "ratio": value / reference}), flush=True)


if __name__ == "__main__":
    main()
