"""Bytes per second of `bytelm prepare` on tables beside a bare loop, and memory.

    python -m bytelm.tools.benchmarks.prepare_tables [--jsonl-mb 2000] [--parquet-mb 1000]
        [--rows-kb 2.7] [--workers 1 2] [--folder DIR]

Makes a JSONL and a Parquet file of about these sizes, and prints three JSON lines for each table
and number of workers: `name`, `value` in MB/s of the file, `reference` (a bare loop's figure),
`ratio`, peak resident bytes of the parent (`parent`) and of the largest worker (`worker`), and the
processor time of both, the start of workers included, for each MB of the file in ms (`cpu`): on two
cores a MB takes half of that at least.
Needs `pip install 'bytelm[tables]'` and three times the sizes on the disk of the folder, which is
temporary by default.

    prepare/jsonl/WORKERS          reference: a loop in one process that reads the texts, by
                                   `json.loads` of each line, and writes nothing
    prepare/jsonl-to-tar/WORKERS   reference: the same loop, which adds each text to a tar with
                                   webdataset's writer
    prepare/jsonl-bound/WORKERS    reference: the loop that writes nothing, and then as many
                                   bytes as the set has, written plainly and synced
    prepare/parquet..., the same   with pyarrow's `iter_batches` and `to_pylist` of the column
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import webdataset
from pyarrow.parquet import ParquetFile, ParquetWriter

from bytelm.tools.benchmarks.measure import Figure, print_figures, seconds_of

BLOCK_ROWS = 2000
_RUN = """
import resource, sys, time
from pathlib import Path
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.runtime.allocator import keep_freed_memory
keep_freed_memory()  # as the command does
source, out, workers = sys.argv[1:]
start, busy = time.perf_counter(), time.process_time()
prepare([Path(source)], Path(out), PrepareOptions(workers=int(workers)))
print(time.perf_counter() - start)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.process_time() - busy + children.ru_utime + children.ru_stime)
status = Path("/proc/self/status").read_text()  # getrusage counts the benchmark before exec, too
print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
print(children.ru_maxrss * 1024)
"""


def table_figures(table: Path, workers: Sequence[int]) -> Iterator[Figure]:
    """Three figures for each number of workers."""
    read = _json_texts if table.suffix == ".jsonl" else _parquet_texts
    size, kind = table.stat().st_size / 1e6, table.suffix[1:]
    _count(read(table))  # warms the cache
    reading = seconds_of(lambda: _count(read(table)))
    references = {
        kind: size / reading,
        f"{kind}-to-tar": size / seconds_of(lambda: _write_tar(read(table), table.parent)),
    }
    for count in workers:
        out = table.with_name("set")
        command = [sys.executable, "-c", _RUN, str(table), str(out), str(count)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, busy, parent, worker = map(float, printed.split())
        set_bytes = sum(path.stat().st_size for path in out.iterdir())
        shutil.rmtree(out)
        writing = seconds_of(partial(_write_plainly, set_bytes, table.parent))
        references[f"{kind}-bound"] = size / (reading + writing)
        cpu = round(1000 * busy / size, 2)
        details = {"parent": int(parent), "worker": int(worker), "cpu": cpu}
        for name, reference in references.items():
            yield Figure(f"prepare/{name}/{count}", size / seconds, "MB/s", reference, details)


def write_json(path: Path, size: int, row_bytes: int) -> None:
    """Write a JSONL file of about `size` bytes."""
    with open(path, "w") as file:
        for rows in _blocks(size, row_bytes):
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, size: int, row_bytes: int) -> None:
    """Write a Parquet file of about `size` bytes of texts, before its compression."""
    schema = pa.schema({"text": pa.string(), "url": pa.string(), "score": pa.float64()})
    with ParquetWriter(path, schema, compression="none") as writer:
        for rows in _blocks(size, row_bytes):
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _blocks(size: int, row_bytes: int) -> Iterator[list[dict[str, object]]]:
    """Rows with texts of words, `row_bytes` long on average."""
    rng = random.Random(0)
    words = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in "x" * 5000
    ]
    while size > 0:
        counts = [rng.randint(1, row_bytes // 3) for _ in range(BLOCK_ROWS)]
        texts = [" ".join(rng.choices(words, k=count)) for count in counts]
        size -= sum(map(len, texts))
        yield [{"text": text, "url": "http://example.org/page", "score": 0.93} for text in texts]


def _json_texts(table: Path) -> Iterator[str]:
    """The text of every line."""
    with open(table, "rb") as file:
        for line in file:
            yield json.loads(line)["text"]


def _parquet_texts(table: Path) -> Iterator[str]:
    """The texts of the column."""
    with ParquetFile(table) as file:
        for batch in file.iter_batches(1024, columns=["text"], use_threads=False):
            yield from batch.column(0).to_pylist()


def _count(texts: Iterable[str]) -> int:
    """The characters of all texts."""
    return sum(map(len, texts))


def _write_tar(texts: Iterable[str], folder: Path) -> None:
    """Add the texts to a tar, which is removed again."""
    path = folder / "bare.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i, text in enumerate(texts):
            writer.write({"__key__": str(i), "txt": text})
    path.unlink()


def _write_plainly(size: int, folder: Path) -> None:
    """Write `size` bytes to a file, which is removed again, and sync it."""
    path, chunk = folder / "plain", bytes(1 << 20)
    with open(path, "wb", buffering=0) as file:
        for written in range(0, size, len(chunk)):
            file.write(chunk[: size - written])
        os.fsync(file.fileno())
    path.unlink()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of prepare on tables beside a bare loop.")
    parser.add_argument("--jsonl-mb", type=float, default=2000)
    parser.add_argument("--parquet-mb", type=float, default=1000)
    parser.add_argument("--rows-kb", type=float, default=2.7, help="average text of a row")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="where the tables and sets are written")
    options = parser.parse_args()
    if options.folder and not options.folder.is_dir():
        parser.error(f"no folder {options.folder}: make it, or leave --folder out")
    row_bytes = int(options.rows_kb * 1000)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, megabytes in (("jsonl", options.jsonl_mb), ("parquet", options.parquet_mb)):
            table = Path(folder) / f"table.{name}"
            write = write_json if name == "jsonl" else write_parquet
            write(table, int(megabytes * 1e6), row_bytes)
            print_figures(table_figures(table, options.workers))
            table.unlink()


if __name__ == "__main__":
    main()
