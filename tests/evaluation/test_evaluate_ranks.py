"""Ranks that share an evaluation: the same figures to the last digit, and nobody waits for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import TINY_MODEL, bytelm, command, environment
from helpers.processes import children, hear_interrupts, wait_until_gone
from helpers.sets import SetMaker, audio, image, text

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.evaluation import PLAIN, SLIDING
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.evaluation.scoring import Scores
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.runtime.ranks import Ranks
from bytelm.pipelines.shards.reader import ShardSet

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bytelm")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.3})
    views = {"text": "utf8", "image": "raster", "audio": "s16be"}
    seen = {"headers": {}, "pairs": [["text", "image"], ["image", "text"]]}
    save_pretrained(Megabyte(config), config, tmp_path / "model", {"views": views, "seen": seen})
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("scoring", "launcher", "options"),
    [
        (PLAIN, ("-m", "bytelm"), ("--processes", "2")),
        (SLIDING, TORCHRUN, ()),
    ],
    ids=["processes", "torchrun"],
)
def test_two_ranks_give_the_figures_of_one(
    scoring: str,
    launcher: tuple[str, ...],
    options: tuple[str, ...],
    make_set: SetMaker,
    model_folder: Path,
) -> None:
    """A sample with documents of one and of several rows, and with at least one of two pairs."""
    texts = [[text(b"call me ishmael " * count)] for count in (1, 3, 40, 80)]
    pairs = [[text(b"a caption"), image(8, 5, seed=seed)] for seed in (1, 2)]
    location = make_set([*texts, *pairs, [audio(700, seed=3)]]).location
    arguments = ("evaluate", model_folder, "--data", location, "--split", "train")
    sample = ("--limit", "6", "--batch", "2", "--scoring", scoring, "--json")
    line = [sys.executable, *launcher, *map(str, arguments), *sample, *options]
    result = subprocess.run(line, capture_output=True, text=True, check=True, env=environment())
    expected = evaluate(model_folder, [location], "train", 2, "fp32", scoring, limit=6).to_dict()
    assert expected["about"]["documents"] == 6
    assert expected["pairs"]["text"]["documents"] == expected["pairs"]["image"]["documents"] >= 1
    shown = json.loads(result.stdout)
    del shown["about"]["date"], expected["about"]["date"]
    assert shown == expected


def test_ranks_end_together_and_the_cause_is_named_once(
    mixed_set: ShardSet, model_folder: Path
) -> None:
    arguments = ("evaluate", model_folder, "--data", mixed_set.location, "--processes", "2")
    error = bytelm(*arguments, "--split", "test", status=2).stderr
    assert "no documents in split 'test'" in error
    assert error.count("\n") == 1


def rank_process(launcher: int, rank: int) -> int | None:
    """The process of a rank, once it runs: one that is stopped before stops its launcher, too."""
    for pid in children(launcher):
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    return None


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGKILL, 1, "bytelm evaluate: rank 1 was ended by SIGKILL"),
        (signal.SIGTERM, 143, "bytelm evaluate: ended by SIGTERM"),
    ],
    ids=["a rank dies", "the command is asked to stop"],
)
def test_a_rank_that_does_not_come_keeps_nobody_waiting(
    number: signal.Signals, status: int, line: str, mixed_set: ShardSet, model_folder: Path
) -> None:
    """Rank 1 stands still, so rank 0 comes to wait for it."""
    arguments = ("evaluate", model_folder, "--data", mixed_set.location, "--processes", "2")
    process = subprocess.Popen(
        command(*arguments),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(),
        preexec_fn=hear_interrupts,
    )
    try:
        while (second := rank_process(process.pid, 1)) is None:
            time.sleep(0.01)
            assert process.poll() is None
        ranks = children(process.pid)
        os.kill(second, signal.SIGSTOP)
        os.kill(second if number == signal.SIGKILL else process.pid, number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()  # its ranks end with it
    assert process.returncode == status
    assert line in error.splitlines()
    wait_until_gone(ranks, 10)


LATE_RANK = """
import time
from bytelm.pipelines.errors import OnAllRanksError
from bytelm.pipelines.runtime import ranks
ranks.WAIT_SECONDS = 1.0
with ranks.joined_ranks() as joined:
    assert joined.gather(joined.rank) == [0, 1]
    if joined.rank == 1:
        time.sleep(60)
    try:
        joined.gather(0)
    except OnAllRanksError as error:
        print(error, flush=True)
"""


def test_a_rank_that_hangs_is_waited_for_as_long_as_the_others_worked() -> None:
    facts = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LATE_RANK],
            env={**environment(), **facts, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        shown, _ = ranks[0].communicate(timeout=50)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert shown.startswith("rank 1 has not come within ")


def test_shares_of_the_ranks_are_the_whole() -> None:
    parts = [list(Ranks(rank, 3).share(range(10))) for rank in range(3)]
    assert sorted(item for part in parts for item in part) == list(range(10))
    assert max(map(len, parts)) - min(map(len, parts)) == 1


def test_sums_over_ranks_are_those_of_all_rows() -> None:
    """Without other ranks a sum is the value itself, in whole numbers of any size."""
    scores = Scores(patch=8)
    scores.heads["text"].sums[:] = 2**62 + np.arange(len(scores.heads["text"].sums))
    before = scores.heads["text"].sums.copy()
    scores.reduce(Ranks().sum)
    assert np.array_equal(scores.heads["text"].sums, before)


def test_damage_that_one_rank_meets_ends_all_of_them(
    make_set: SetMaker, model_folder: Path
) -> None:
    """Two documents in two rows, of which the second rank reads the damaged one."""
    shard_set = make_set([[text(b"call me ishmael " * 14)], [text(b"ishmael " * 20)]])
    shard = Path(shard_set.location) / "train-000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"ishmael ishmael ", b"ishmael ahab    ", 1))
    arguments = ("evaluate", model_folder, "--data", shard_set.location, "--split", "train")
    error = bytelm(*arguments, "--processes", "2", status=1).stderr
    [damage] = [line for line in error.splitlines() if "document train-1" in line]
    assert [line for line in error.splitlines() if line != damage] in (
        [],
        ["bytelm evaluate: ended, since rank 1 has ended"],
    )
