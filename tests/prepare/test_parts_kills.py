"""Parts and merges that are killed at random moments, in any order: the bytes of one process."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.commands import bytelm, environment
from helpers.processes import descendants, hear_interrupts, wait_until_gone
from helpers.source_files import hashes, small_source, txt

from bytelm.pipelines.shards.format import SET_MANIFEST

KILLS = 20
PARTS = 3
SMALL_ITEMS = """
import sys
from bytelm.pipelines.cli import main
from bytelm.pipelines.prepare import piece_files, work_items
work_items.ITEM_DOCUMENTS = 2
work_items.ITEM_BYTES = 9_000
piece_files.PIECE_BYTES = 1_000
sys.exit(main.main())
"""


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Start a command whose work items are small."""
    command = [sys.executable, "-c", SMALL_ITEMS, *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=hear_interrupts,
    )


def complete(*arguments: object) -> None:
    """Run a command to its end, which has to be a good one."""
    process = start(*arguments)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr.decode()


def kill_at(process: subprocess.Popen[bytes], out: Path, files: int, number: int) -> bool:
    """Send a process a signal once the set's folder holds so many files; whether it still ran."""
    while process.poll() is None and len(list(out.rglob("*"))) < files:
        time.sleep(0.002)
    if process.poll() is not None:
        return False
    below = descendants(process.pid)
    process.send_signal(number)
    process.wait(60)
    wait_until_gone(below, 20)
    return True


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_parts_and_merges_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    source, out = small_source(tmp_path / "source"), tmp_path / "set"
    txt(source / "rows.jsonl", "\n".join(f'{{"text": "row {i}"}}' for i in range(900)))
    options = (source, "--shard-mb", 0.02, "--workers", 1)
    bytelm("prepare", *options, "--out", tmp_path / "whole")
    expected = hashes(tmp_path / "whole")
    commands = [
        *(("prepare", *options, "--out", out, "--part", f"{i}/{PARTS}") for i in range(PARTS)),
        ("merge", out),
    ]
    rng = random.Random(0)
    killed = Counter[str]()
    while sum(killed.values()) < KILLS or len(killed) < 2:
        chosen = rng.choice(commands)
        files = len(list(out.rglob("*"))) + rng.randint(0, 12)
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        if kill_at(start(*chosen), out, files, number):
            killed[str(chosen[0])] += 1
        if (out / SET_MANIFEST).exists():
            complete("merge", out)
            assert hashes(out) == expected
            shutil.rmtree(out)
    for chosen in [*rng.sample(commands[:PARTS], PARTS), commands[-1]]:
        complete(*chosen)
    assert hashes(out) == expected
