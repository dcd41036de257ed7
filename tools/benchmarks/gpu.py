"""Everything that a GPU is for, measured in under eight minutes.

    python -m bytelm.tools.benchmarks.gpu [--only PART ...] > figures.jsonl 2> log

Prints a JSON line a figure, the most important first: `name`, `value`, `unit`, `reference` (from
the same run, or an aim) and `ratio` (value / reference). Each part runs in processes of its own
with a limit on its time, so that a run that is cut, or a part that fails, leaves the figures before
it. `NAME/failed` has the seconds that a part ran, and its `error`; the status is then 1. Parts for
which `--seconds` leaves no time fail so. `--only` takes names of parts or their beginnings, as
`train/250m`. `--smoke` runs every part once, tiny, on the CPU: a test, no measurement.

Needs one GPU with 80 GB, 16 cores, and `pip install 'bytelm[bench]'` (a peer that is missing fails
alone). SIZE is 250m, 1b, 16m or 64m of `modern-*`; PEER is mblm or megabyte-pytorch.

    environment                 commit, versions, machine
    environment/product         FLOP/s of 8192 x 8192 x 8192 in bf16; every part measures it again
    compile/SIZE/CODE           seconds of the first compiled step of one layer a stage, all codes
                                and sizes side by side; fills the compiler's cache for what follows
    train/SIZE/CODE/eager, .../compiled      bytes/s of a step of 8 rows of 8,192 ids, one document
                                each: forward in bf16, backward, clipping, AdamW; `ms` of a step.
                                .../codec-features: ours, with those that data workers give
    train/SIZE/bytelm/.../product            FLOP/s without the pairs that attention masks, and
                                without what is computed again; reference: the product
    train/SIZE/bytelm/.../memory             peak GB of tensors; reference: the formula
    train/SIZE/beside-PEER      our bytes/s beside the peer's, each at its better of eager and
                                compiled
    decode/64m/1, .../256       bytes/s of all rows, by the path of `bytelm generate` in bf16, one
                                row behind a prompt of 2,048 bytes; references: aims
    decode/64m/launches         kernels and graphs that the host starts for each byte of one row
    decode/64m/megabyte-pytorch bytes/s of one row; reference: its own `generate`
    layouts/64m/speed           bytes/s of forward and backward over 50 layouts of short documents
    layouts/64m/recompilations  graphs that these layouts added; the aim is 0
    layouts/64m/synchronisations             1 if forward, loss and backward make the host wait for
                                the GPU, with the line that does in `error`; the aim is 0
    run/modern-16m/speed, .../data-wait      `bytelm train` on the demo's files: bytes/s, and the
                                part of the time that it waits for data; reference: the aim
    features/...                MB/s a core of codec features, as `features.py` says, beside the run
    long/250m/checkpointed, .../product, .../memory     as for training, a compiled step of one row
                                of 1,048,576 bytes; .../checkpointed-local: checkpointing of the
                                local stage alone
    attention/local/WAY         ms of one layer's attention in the local stage, forward and backward
    attention/documents/WAY     the same in stage 0, on rows packed with documents
    decode/64m/logits           norm of the difference of cached and uncached logits in bf16, as
                                part of their norm; reference: the aim
    decode/64m/fp32-alone, .../fp32-cpu      bytes of rows drawn together in fp32 that differ from
                                those of each row alone, and from the CPU's decoder; the aim is 0
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bytelm.tools.benchmarks.gpu_parts import attention, data_side, decoding, layouts, training
from bytelm.tools.benchmarks.gpu_parts.environment import environment_figures
from bytelm.tools.benchmarks.gpu_parts.scale import GPU, SMOKE, Scale
from bytelm.tools.benchmarks.gpu_parts.training import OURS
from bytelm.tools.benchmarks.jobs import FAILED, Job, run_jobs
from bytelm.tools.benchmarks.measure import Figure, print_figures
from bytelm.tools.benchmarks.peers import NAMES, PEERS

TOTAL_SECONDS = 470.0
"""All parts together; the imports of this process come on top."""
DECODED = "64m"
"""Size of the model that is decoded, and trained on packed documents."""
Conclude = Callable[[Mapping[str, Figure]], Iterator[Figure]]


@dataclass(frozen=True)
class Part:
    """Jobs that run side by side."""

    name: str
    seconds: float
    """Limit on their time."""
    jobs: tuple[Job, ...]
    conclude: Conclude = lambda figures: iter(())
    """Figures that follow from all figures so far."""


def parts(scale: Scale) -> Iterator[Part]:
    """All parts, the most important first."""
    yield _part("environment", 30, environment_figures, scale)
    compilations = [
        Job(f"compile/{size}/{name}", training.compile_seconds, (scale, size, name))
        for size in scale.models
        for name in NAMES
    ]
    yield Part("compile", 100, tuple(compilations))
    by_importance = list(scale.models)
    most_important = by_importance[0]
    yield from _training_parts(scale, most_important)
    yield _part("decode", 60, decoding.decoding_figures, scale, DECODED)
    for size in by_importance[1:2]:
        yield from _training_parts(scale, size)
    yield _part("layouts", 40, layouts.layout_figures, scale, DECODED)
    data_jobs = (
        Job("data/run", data_side.run_figures, (scale,)),
        Job("data/features", data_side.feature_figures, (scale,)),
    )
    yield Part("data", 75, data_jobs)
    yield _part("long", 60, training.long_steps, scale, most_important)
    yield _part("attention", 45, attention.attention_figures, scale, most_important)
    for size in by_importance[2:]:
        yield from _training_parts(scale, size)


def _training_parts(scale: Scale, size: str) -> Iterator[Part]:
    """Our training step and the peers' at one size."""
    yield _part(f"train/{size}/{OURS}", 75, training.our_steps, scale, size)
    for peer in PEERS:
        name = f"train/{size}/{peer}"
        jobs = (Job(name, training.peer_steps, (scale, size, peer)),)
        yield Part(name, 45, jobs, partial(training.comparisons, size=size, peer=peer))


def _part(name: str, seconds: float, function: Callable[..., Iterator[Figure]], *args: Any) -> Part:
    return Part(name, seconds, (Job(name, function, args),))


def measure(scale: Scale, only: Sequence[str], seconds: float) -> Iterator[Figure]:
    """Figures of all parts, or of those whose names begin with one of `only`, within `seconds`.

    A part for which no time is left ends with the figure `NAME/failed`, as one that fails does.
    """
    end = time.perf_counter() + seconds
    found: dict[str, Figure] = {}
    for part in parts(scale):
        if only and not part.name.startswith(tuple(only)):
            continue
        for figure in run_jobs(part.jobs, max(0.0, min(part.seconds, end - time.perf_counter()))):
            found[figure.name] = figure
            yield figure
        yield from part.conclude(found)


def main() -> int:
    """Measure and print; returns 1 if a part failed."""
    parser = argparse.ArgumentParser(description="Everything that a GPU is for.")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="names, or beginnings"
    )
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="limit of all parts")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on a CPU: no measurement")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        parser.error("no GPU is here: --smoke runs every part once, tiny, on the CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the jobs
    failed = False
    for figure in measure(SMOKE if options.smoke else GPU, options.only, options.seconds):
        print_figures([figure])
        failed |= figure.name.endswith(FAILED)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
