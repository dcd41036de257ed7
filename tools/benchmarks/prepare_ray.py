"""Decoded bytes per second of `bytelm prepare` on two Ray nodes beside two workers of one process.

    python -m bytelm.tools.benchmarks.prepare_ray [--source DIR] [--megabytes M]

Prints two JSON lines: `name`, `value` in MB/s of source files on two local nodes of one CPU each,
`reference` (one process with two workers) and `ratio` (value / reference; the aim on two cores is
0.9). The files of DIR, by default the demo's, are copied until there are M megabytes: work items
have up to 33 MB, so that few of them leave a node idle at the end. Needs
`pip install 'bytelm[ray]'`, two cores and eight times M megabytes of disk; takes some five minutes.

The nodes start before the time is taken. `prepare/ray` counts all that follows: connecting, the
start of processes on the nodes, listing, decoding and writing. `prepare/ray_after_start` is without
the time that a set of one small file takes either way. Medians of three rounds, in turn.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.prepare.ray_prepare import prepare_on_ray
from bytelm.pipelines.runtime.allocator import keep_freed_memory
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.tools.benchmarks.measure import Figure, print_figures, seconds_of
from bytelm.tools.repository import DEMO_FILES

ROUNDS = 3
NODES = 2


def ray_figures(source: Path, megabytes: float) -> Iterator[Figure]:
    """The figures of files below a folder; ValueError where it holds none."""
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = _copy(source, folder / "source", megabytes * 1e6)
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            cluster.add_node(**node)
            yield from _compare(folder, size, cluster.address)
        finally:
            cluster.shutdown()


def _compare(folder: Path, size: int, address: str) -> Iterator[Figure]:
    """Time both ways; the sets must have the same root hash."""
    (folder / "small").mkdir()
    (folder / "small" / "a.txt").write_text("a text")
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for source in ("source", "small"):
            for name, call in _calls(folder, source, address).items():
                seconds.setdefault((name, source), []).append(seconds_of(call))
            roots = {ShardSet(folder / name).root for name in ("process", "ray")}
            assert len(roots) == 1, "other bytes"
            for name in ("process", "ray"):
                shutil.rmtree(folder / name)
    medians = {key: median(values) for key, values in seconds.items()}
    starts = {"prepare/ray": 0.0, "prepare/ray_after_start": 1.0}
    for figure, share in starts.items():
        speeds = {
            name: size / 1e6 / (medians[name, "source"] - share * medians[name, "small"])
            for name in ("process", "ray")
        }
        yield Figure(figure, speeds["ray"], "MB/s", speeds["process"])


def _calls(folder: Path, source: str, address: str) -> dict[str, Callable[[], object]]:
    """Both ways of preparing a source."""
    options = PrepareOptions(workers=NODES)
    sources = [folder / source]
    return {
        "process": partial(prepare, sources, folder / "process", options),
        "ray": partial(prepare_on_ray, sources, folder / "ray", options, address),
    }


def _copy(source: Path, folder: Path, least: float) -> int:
    """Copy the files below a folder until there are `least` bytes; returns their bytes."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if not files:
        raise ValueError(f"no files below {source}: give a folder that holds some")
    total = sum(path.stat().st_size for path in files)
    copies = math.ceil(least / total)
    for copy in range(copies):
        (folder / str(copy)).mkdir(parents=True)
        for number, path in enumerate(files):
            shutil.copyfile(path, folder / str(copy) / f"{number}{path.suffix}")
    return copies * total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of prepare on Ray beside two workers.")
    parser.add_argument("--source", type=Path, default=DEMO_FILES, metavar="DIR")
    parser.add_argument("--megabytes", type=float, default=500.0, help="size of the source")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    try:
        print_figures(ray_figures(options.source, options.megabytes))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
