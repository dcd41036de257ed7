"""prepare survives thousands of damaged files, bombs, and kills at random moments."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.mutants import (
    TAR_DOCUMENTS,
    images,
    parquet_tables,
    row_tables,
    sounds,
    tars,
    write_mutants,
)
from helpers.processes import descendants, peak_bytes, wait_until_gone
from helpers.source_files import documents, hashes, small_source, sound, txt

from bytelm.pipelines.prepare.set_folder import SKIPPED_LIST
from bytelm.pipelines.shards.reader import ShardSet

COMMAND = [sys.executable, "-m", "bytelm", "prepare"]
COUNTS = [200, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
KINDS = {
    "image": images,
    "sound": sounds,
    "tar": tars,
    "rows": row_tables,
    "parquet": parquet_tables,
}


@dataclass
class Run:
    """Outcome of a prepare."""

    status: int
    seconds: float
    worker_bytes: int
    """Peak resident memory of a worker."""


def run_prepare(source: Path, out: Path) -> Run:
    """Run the command, and watch the memory of its workers."""
    start = time.monotonic()
    options = ["--workers", "2", "--max-bad-share", "1"]
    process = subprocess.Popen(
        [*COMMAND, str(source), "--out", str(out), *options], stdout=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        peak = max([peak, *map(peak_bytes, descendants(process.pid))])
        time.sleep(0.02)
    return Run(process.returncode, time.monotonic() - start, peak)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_damaged_files_are_in_the_set_or_in_the_report(
    tmp_path: Path, kind: str, count: int
) -> None:
    rng = np.random.default_rng(count)
    sound_files: Callable[[np.random.Generator], list[tuple[str, bytes]]] = KINDS[kind]
    names = write_mutants(tmp_path / "source", sound_files(rng), count, rng)
    run = run_prepare(tmp_path / "source", tmp_path / "set")
    assert run.status == 0
    assert 0 < run.worker_bytes < 1 << 30
    report = ShardSet(tmp_path / "set").report
    found = documents(tmp_path / "set").values()
    used = [str(segment["source"]).split("/")[0] for segments in found for segment in segments]
    listed = tmp_path / "set" / SKIPPED_LIST  # where there are too many for the manifest
    entries = report["skipped_files"]
    if listed.exists():
        entries = [json.loads(line) for line in listed.read_text().splitlines()]
    named = {e["name"].split("/")[0] for e in entries}
    whole = TAR_DOCUMENTS if kind == "tar" else 1
    assert used.count("whole.txt") == 1
    counts = dict.fromkeys(names, 0)
    for name in used:
        counts[name] = counts.get(name, 0) + 1
    lost = [n for n in names if counts[n] < whole and n not in named]
    assert not lost
    assert report["documents"] > 1
    print(
        f"{count} of {kind}: {run.seconds:.1f} s, worker {run.worker_bytes / 1e6:.0f} MB, "
        f"{report['documents']} documents, {json.dumps(report['skipped'])}"
    )


# --- bombs ---

MEASURE = """
import resource, sys
from pathlib import Path
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    prepare([source], out, PrepareOptions(max_bad_share=1))
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(resource.getrusage(who).ru_maxrss * 1024)
"""


def memory(source: Path, out: Path) -> list[int]:
    """Peak resident memory of prepare and of its worker, in bytes."""
    command = [sys.executable, "-c", MEASURE, str(source), str(out)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(line) for line in printed.split()]


def write_bombs(folder: Path) -> dict[str, str]:
    """Write small files that claim to be large; returns the reason why each is skipped."""
    size = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(50_000_000), 9)
    chunks = [size, b"IDAT" + pixels, b"IEND"]
    png = b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )
    txt(folder / "image.png", b"\x89PNG\r\n\x1a\n" + png)
    fmt = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 16_000, 1, 8)
    frames = struct.pack("<I", 3 << 30)
    txt(folder / "sound.wav", b"RIFF" + frames + fmt + b"data" + frames + bytes(4000))
    sound(folder / "lossless.flac", 4000)
    flac = bytearray((folder / "lossless.flac").read_bytes())
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4  # 2^36 - 1 samples
    (folder / "lossless.flac").write_bytes(flac)
    info = tarfile.TarInfo("holes.txt")
    info.size = 10 << 30
    (folder / "large.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with open(folder / "large.tar", "r+b") as tar:  # holes on the disk, no bytes
        tar.truncate(512 + (10 << 30) + 1024)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (10 << 30 & 0o77777777777)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "sparse.tar").write_bytes(bytes(header) + bytes(512 + 1024))
    return {
        "image.png": "over the limit",
        "sound.wav": "over the limit",
        "lossless.flac": "over the limit",
        "large.tar/holes.txt": "over the limit",
        "sparse.tar/holes.txt": "sparse",
    }


def test_bombs_are_refused_from_their_headers(tmp_path: Path) -> None:
    small_source(tmp_path / "calm")
    small_source(tmp_path / "bombs")
    expected = write_bombs(tmp_path / "bombs" / "bombs")
    calm = memory(tmp_path / "calm", tmp_path / "calm-set")
    bombs = memory(tmp_path / "bombs", tmp_path / "set")
    entries = ShardSet(tmp_path / "set").report["skipped_files"]
    assert {e["name"].removeprefix("bombs/"): e["reason"] for e in entries} == expected
    assert max(b - c for b, c in zip(bombs, calm, strict=True)) < 50_000_000


# --- kills ---


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.long)])
def test_a_prepare_killed_at_any_moment_is_resumed_to_the_same_set(
    tmp_path: Path, kills: int
) -> None:
    source = small_source(tmp_path / "source")
    rng = np.random.default_rng(kills)
    for i in range(300):
        txt(source / "more" / f"{i}.txt", rng.bytes(5000).replace(b"\0", b"1"))
    txt(source / "bad.png", b"\x89PNG\r\n\x1a\n" + bytes(50))
    command = [*COMMAND, str(source), "--workers", "2", "--shard-mb", "0.05", "--out"]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    expected = hashes(tmp_path / "whole")
    for i in range(kills):
        out = tmp_path / str(i)
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL)
        time.sleep(seconds * float(rng.uniform(0.2, 1.0)))
        workers = descendants(process.pid) if process.poll() is None else set()
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until_gone(workers, 10)
        subprocess.run([*command, str(out)], check=True, stdout=subprocess.DEVNULL)
        assert hashes(out) == expected
