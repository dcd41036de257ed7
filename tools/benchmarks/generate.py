"""Speed of decoding beside MEGABYTE-pytorch, the limit of memory and a flat decoder.

    python -m bytelm.tools.benchmarks.generate [--only FIGURE]

Prints a JSON line a figure: `name`, `value`, `unit`, `reference` (measured in the same run) and
`ratio` (value / reference). Two threads, random weights, the shape of `train_step.py`, the bytes
after a prompt of 2,048. Needs `pip install 'bytelm[bench]'`; takes about three minutes.

    generate/batch1/megabyte-pytorch    bytes/s of 512 bytes of one row, the prompt's time included
    generate/batch64/megabyte-pytorch   bytes/s of 64 rows together, in bf16, of the steps alone

        The reference is MEGABYTE-pytorch 0.3.6's own `generate`. It has no cache, so each byte
        costs a pass over all preceding bytes. It makes a few bytes that end in the middle of the
        512, and its speed is that of each of them.

    generate/batch1/memory-limit        bytes/s of one row in fp32; the reference would read the
                                        weights and caches that a byte needs at the speed of a copy
                                        (bytes read and written)
    generate/flat/1, generate/flat/16   bytes/s of all rows at three quarters of a row; the
                                        reference is a decoder of one stage with at most a quarter
                                        of the parameters, at equal training FLOPs per byte
                                        (without the pairs that attention masks)
    generate/demo-image/1, .../16       bytes/s of all rows that draw an image of 64x64 pixels with
                                        `modern-demo`, as `bytelm generate` does in fp32; nothing to
                                        compare with but other commits
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from bytelm.modalities.base import Header
from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.flops import causal_training_flops_per_byte, costs
from bytelm.model.megabyte import Megabyte
from bytelm.model.presets import preset
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.generation.generate import generate_payloads
from bytelm.pipelines.generation.request import image_request
from bytelm.tools.benchmarks.measure import Figure, print_figures, seconds_of, set_threads
from bytelm.tools.benchmarks.peers import HEAD, SHORT, VOCAB_SIZE, megabyte_pytorch, our_config

PROMPT = 2_048
NEW_BYTES = 512
ROWS = 64
COPIED_BYTES = 2**28
FP32_BYTES = 4.0
DEMO_HEADER = Header(channels=3, width=64, height=64)


def against_megabyte_pytorch(rows: int) -> Iterator[Figure]:
    """Bytes per second of all rows beside MEGABYTE-pytorch's `generate`."""
    model = Megabyte(our_config(SHORT)).eval()
    prompts = list(torch.randint(256, (rows, PROMPT)))
    with torch.autocast("cpu", torch.bfloat16, enabled=rows > 1):
        decoder = Decoder(model, rows, PROMPT + NEW_BYTES)
        prompt_seconds = seconds_of(lambda: decoder.prefill(prompts))
        seconds = seconds_of(lambda: _decode(decoder, NEW_BYTES))
    if rows == 1:
        seconds += prompt_seconds
    speed = rows * NEW_BYTES / seconds
    name = f"generate/batch{rows}/megabyte-pytorch"
    yield Figure(name, speed, "bytes/s", _megabyte_pytorch_speed(rows))


def _megabyte_pytorch_speed(rows: int) -> float:
    """Bytes per second of all rows; its `generate` makes bytes until the row is full."""
    end = PROMPT + NEW_BYTES // 2
    new_bytes = 8 if rows == 1 else 1
    model: Any = megabyte_pytorch(replace(SHORT, context=end)).eval()
    prompts = torch.randint(256, (rows, end - new_bytes))
    model.generate(prompts[:1])  # warms up
    return rows * new_bytes / seconds_of(lambda: model.generate(prompts))


def against_memory() -> Iterator[Figure]:
    """Bytes per second of one row beside a memory that only reads what a byte needs."""
    config = our_config(SHORT)
    decoder = _prefilled(config, 1, PROMPT, NEW_BYTES)
    speed = NEW_BYTES / seconds_of(lambda: _decode(decoder, NEW_BYTES))
    limit = _copy_bandwidth() / _bytes_read_per_byte(config)
    yield Figure("generate/batch1/memory-limit", speed, "bytes/s", limit)


def _bytes_read_per_byte(config: ModelConfig) -> float:
    """Bytes of fp32 weights, keys and values read for one new byte, on average of NEW_BYTES.

    Of the embedding tables one row is read, which does not count.
    """
    *stages, output = costs(config)
    total = FP32_BYTES * output.parameters
    for index, stage in enumerate(stages):
        shape = config.stages[index]
        table_parameters = VOCAB_SIZE * config.byte_width(index)
        if index == 0:
            table_parameters += config.context * config.byte_width(0)
            positions = (PROMPT + NEW_BYTES / 2) / SHORT.patch
        else:
            positions = (SHORT.patch + 1) / 2
        cached = 2 * shape.layers * shape.width * positions
        numbers = stage.parameters - table_parameters + cached
        total += FP32_BYTES * numbers / config.position_bytes(index)
    return total


def _copy_bandwidth() -> float:
    """Bytes read and written per second by a copy."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / median(seconds_of(lambda: target.copy_(source)) for _ in range(7))


FLAT = ModelConfig(
    stages=(StageConfig(256, 12, 256 // HEAD),),
    patch_sizes=(),
    context=2_048,
    tie_embeddings=False,
    init_std=0.05,
)
"""A decoder of one stage. Twelve layers, the depth of the smallest published decoders, and a width
at which weights and keys exceed the processor's cache. Wider flat decoders gain on ours at one row,
where both wait for equally many weights."""
TWO_STAGES = ModelConfig(
    stages=(StageConfig(1024, 9, 1024 // HEAD), StageConfig(256, 2, 256 // HEAD)),
    patch_sizes=(8,),
    context=2_048,
    tie_embeddings=False,
    init_std=0.05,
)
"""A local stage as wide as FLAT of two layers, which stay in the cache and cost few calls. The
FLOPs that this saves go to the global stage, which runs once in eight bytes and so can be wide."""


def against_flat(rows: int) -> Iterator[Figure]:
    """Bytes per second of TWO_STAGES beside FLAT, both in fp32 by our decoder, in turn."""
    configs = (TWO_STAGES, FLAT)
    parameters = [sum(cost.parameters for cost in costs(config)) for config in configs]
    assert parameters[0] >= 4 * parameters[1], parameters
    flops = [causal_training_flops_per_byte(config) for config in configs]
    assert 0.95 < flops[0] / flops[1] < 1.05, flops
    prompt, turns, new_bytes = 1_408, 8, 32  # ends at three quarters of a row
    decoders = [_prefilled(config, rows, prompt, turns * new_bytes) for config in configs]
    seconds: list[list[float]] = [[], []]
    for _ in range(turns):
        for decoder, times in zip(decoders, seconds, strict=True):
            times.append(seconds_of(partial(_decode, decoder, new_bytes)))
    ours, flat = (rows * new_bytes / median(times) for times in seconds)
    yield Figure(f"generate/flat/{rows}", ours, "bytes/s", flat)


def demo_image(rows: int) -> Iterator[Figure]:
    """Bytes per second of `rows` images drawn together by the path of `bytelm generate`."""
    model = Megabyte(preset("modern-demo")).eval()
    request = image_request(DEMO_HEADER, ViewsConfig().image)
    settings = (range(rows), Sampling(), "fp32")
    one_line = image_request(DEMO_HEADER._replace(height=1), ViewsConfig().image)
    generate_payloads(model, one_line, *settings)  # compiles kernels
    seconds = seconds_of(lambda: generate_payloads(model, request, *settings))
    speed = rows * request.size / seconds
    yield Figure(f"generate/demo-image/{rows}", speed, "bytes/s")


def _prefilled(config: ModelConfig, rows: int, prompt: int, new_bytes: int) -> Decoder:
    """A decoder of random weights whose rows hold prompts and have room for `new_bytes`."""
    decoder = Decoder(Megabyte(config).eval(), rows, prompt + new_bytes)
    decoder.prefill(list(torch.randint(256, (rows, prompt))))
    return decoder


def _decode(decoder: Decoder, count: int) -> None:
    """Decode `count` bytes greedily; the first id is arbitrary."""
    ids = torch.zeros(decoder.batch, dtype=torch.int64)
    for _ in range(count):
        ids = decoder.step(ids).argmax(dim=1)


FIGURES: dict[str, Callable[[], Iterator[Figure]]] = {
    "batch1": lambda: against_megabyte_pytorch(1),
    "memory-limit": against_memory,
    "flat/1": lambda: against_flat(1),
    "flat/16": lambda: against_flat(16),
    "demo-image/1": lambda: demo_image(1),
    "demo-image/16": lambda: demo_image(16),
    "batch64": lambda: against_megabyte_pytorch(ROWS),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of decoding.")
    parser.add_argument("--only", choices=FIGURES, help="one of the figures")
    only = parser.parse_args().only
    set_threads()
    torch.manual_seed(0)
    for name in [only] if only else FIGURES:
        print_figures(FIGURES[name]())


if __name__ == "__main__":
    main()
