"""What the plan costs for a set of any size.

    python -m bytelm.tools.benchmarks.plan [SHARDS [DOCUMENTS]]

Makes the indexes (no tars) of a synthetic set of SHARDS shards of DOCUMENTS documents each, sizes
log-normal around 3 KB, 10^4 shards of 10^3 by default, and prints JSON lines: seconds to open the
set, to count its rows once and to load what was counted, milliseconds to find a random row (mean
and worst of 500, by the clock and of processor time, which other work on the machine does not
touch), and the process's peak memory after each part. What was opened is frozen first, as training
does: a full pass of Python's garbage collector takes longer than a row.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Source, load_or_make_plan
from bytelm.pipelines.shards.format import CRC_CHUNK, INDEX, Shard
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import write_set_manifest

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
ROW_LENGTH, PATCH = 8192, 8
LOOK_UPS = 500


def main(shards: int, documents: int) -> None:
    """Print every figure as a JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        _write_indexes(Path(folder), shards, documents)
        began = time.perf_counter()
        shard_set = ShardSet(folder)
        _say("plan/open", time.perf_counter() - began, "s")
        _say("plan/memory-open", _peak_memory(), "MB")
        config = PlanConfig(ROW_LENGTH, PATCH, VIEWS)
        for name in ("plan/count", "plan/load"):
            began = time.perf_counter()
            plan = load_or_make_plan([Source(shard_set)], config, Path(folder) / "plan.npz")
            _say(name, time.perf_counter() - began, "s")
        _say("plan/memory-counted", _peak_memory(), "MB")
        rows = plan.rows(0)
        _say("plan/rows", rows, "rows")
        gc.freeze()
        clock, processor = [], []
        for row in np.random.default_rng(1).integers(0, rows, LOOK_UPS).tolist():
            began, used = time.perf_counter(), time.thread_time()
            plan.row(0, row)
            clock.append(1e3 * (time.perf_counter() - began))
            processor.append(1e3 * (time.thread_time() - used))
        for name, took in (("random-row", clock), ("random-row-processor", processor)):
            _say(f"plan/{name}", float(np.mean(took)), "ms")
            _say(f"plan/{name}-worst", max(took), "ms")
        _say("plan/memory", _peak_memory(), "MB")


def _say(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit}), flush=True)


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _write_indexes(folder: Path, shards: int, documents: int) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for number in range(shards):
        size = rng.lognormal(8, 1.5, documents).astype(np.int64) + 1
        chunks = -(-size // CRC_CHUNK)
        rows = np.zeros(documents, INDEX)
        rows["document"] = np.arange(documents)
        rows["size"] = size
        rows["offset"] = np.cumsum(size) - size
        rows["first_crc"] = np.cumsum(chunks) - chunks
        file = io.BytesIO()
        np.save(file, rows)
        np.save(file, np.zeros(int(chunks.sum()), "<u4"))
        data = file.getvalue()
        shard = Shard(
            name=f"train-{number:06d}.tar",
            split="train",
            size=int(size.sum()),
            sha256=hashlib.sha256(str(number).encode()).hexdigest(),
            index_size=len(data),
            index_sha256=hashlib.sha256(data).hexdigest(),
            documents=documents,
            bytes={"text": int(size.sum()), "image": 0, "audio": 0},
        )
        (folder / shard.index_name).write_bytes(data)
        lines.append(shard)
    write_set_manifest(folder, lines, {})


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [10_000, 1_000][len(given) :]))
