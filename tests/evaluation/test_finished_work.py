"""An evaluation that ended early goes on with what was finished, and gives the same figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import TINY_MODEL, bytelm, environment
from helpers.sets import SetMaker, audio, image, text
from torch import Tensor

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.evaluation import PLAIN, SLIDING, finished_work
from bytelm.pipelines.evaluation import evaluate as evaluation
from bytelm.pipelines.evaluation.scoring import NatsOf, nats_of_model
from bytelm.pipelines.runtime.launcher import free_port

KILLED = """
import sys
from bytelm.pipelines.cli import main
from bytelm.pipelines.evaluation import finished_work
finished_work.KEEP_SECONDS = 0.0
sys.exit(main.main(sys.argv[1:]))
"""
"""The command, of which each rank keeps every unit at once."""


@pytest.fixture
def checkpoint_model(tmp_path: Path) -> Path:
    """The model of a checkpoint, whose evaluations are kept."""
    torch.manual_seed(1)
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.3})
    views = {"text": "utf8", "image": "raster", "audio": "s16be"}
    seen = {"headers": {}, "pairs": [["text", "image"], ["image", "text"]]}
    folder = tmp_path / "run" / "checkpoints" / "step-00000004" / "model"
    save_pretrained(Megabyte(config), config, folder, {"views": views, "seen": seen})
    return folder


def mixed(make_set: SetMaker) -> str:
    texts = [[text(b"call me ishmael " * count)] for count in (1, 3, 40, 80)]
    pairs = [[text(b"a caption"), image(8, 5, seed=seed)] for seed in (1, 2)]
    return make_set([*texts, *pairs, [audio(700, seed=3)]]).location


def undated(result: dict[str, Any]) -> dict[str, Any]:
    del result["about"]["date"]
    return result


@pytest.mark.parametrize(("scoring", "batches"), [(PLAIN, 4), (SLIDING, 16)])
def test_calls_that_are_interrupted_come_to_the_figures_of_one(
    scoring: str,
    batches: int,
    make_set: SetMaker,
    checkpoint_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call is interrupted behind some batches, those of a group of documents at least."""
    computed: list[int] = []

    def interrupted(model: Megabyte, precision: str) -> NatsOf:
        compute, first = nats_of_model(model, precision), len(computed)

        def nats_of(batch: Batch) -> Tensor:
            computed.append(1)
            if len(computed) > first + limit:
                raise KeyboardInterrupt
            return compute(batch)

        return nats_of

    monkeypatch.setattr(evaluation, "nats_of_model", interrupted)
    monkeypatch.setattr(finished_work, "KEEP_SECONDS", 0.0)
    location, evaluations = mixed(make_set), checkpoint_model / "evaluations"
    settings = (checkpoint_model, [location], "train", 1, "fp32", scoring)
    limit = 10**9
    expected = undated(evaluation.evaluate(*settings).to_dict())
    total, calls = len(computed), 1
    computed.clear()
    limit = batches
    while True:
        try:
            result = evaluation.evaluate(*settings, evaluations=evaluations)
            break
        except KeyboardInterrupt:
            calls += 1
            assert list(evaluations.glob(".unfinished-*/*.json"))
            assert calls < 2 * total
    assert undated(result.to_dict()) == expected
    assert calls > 2
    in_flight = torch.get_num_threads() + 2
    assert len(computed) <= total + calls * in_flight
    assert not list(evaluations.iterdir())


def test_other_settings_take_nothing_over(
    make_set: SetMaker, checkpoint_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finished_work, "KEEP_SECONDS", 0.0)
    evaluations = checkpoint_model / "evaluations"
    location = mixed(make_set)
    settings = (checkpoint_model, [location], "train", 1, "fp32", PLAIN)
    expected = undated(evaluation.evaluate(*settings, limit=5).to_dict())
    with monkeypatch.context() as patched:
        patched.setattr(finished_work.FinishedWork, "end", lambda work: None)
        evaluation.evaluate(*settings, evaluations=evaluations)
    (left,) = evaluations.iterdir()
    result = evaluation.evaluate(*settings, limit=5, evaluations=evaluations)
    assert undated(result.to_dict()) == expected
    assert list(evaluations.iterdir()) == [left]

    file = next(left.glob("rows-*.json"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"is damaged .*: remove it, and evaluate again"):
        evaluation.evaluate(*settings, evaluations=evaluations)
    long_ago = time.time() - 86_400 * (finished_work.MOST_DAYS + 1)
    os.utime(left, (long_ago, long_ago))
    evaluation.evaluate(*settings, limit=5, evaluations=evaluations)
    assert not list(evaluations.iterdir())


def test_a_short_evaluation_writes_no_file(
    make_set: SetMaker, checkpoint_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        finished_work.FinishedWork, "write", lambda work, name, content: written.append(name)
    )
    location, evaluations = mixed(make_set), checkpoint_model / "evaluations"
    settings = (checkpoint_model, [location], "train", 1, "fp32", PLAIN)
    evaluation.evaluate(*settings, limit=3, evaluations=evaluations)
    assert not written


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 3])
def test_what_ranks_had_done_when_they_were_killed_is_kept_for_any_number_of_them(
    processes: int, make_set: SetMaker, checkpoint_model: Path
) -> None:
    """Two ranks are killed in the middle; the command goes on with other processes."""
    documents = [[text(b"the white whale %d " % n * (40 + n))] for n in range(150)]
    location = make_set(documents).location
    arguments = ["evaluate", checkpoint_model, "--data", location, "--split", "train", "--json"]
    expected = undated(json.loads(bytelm(*arguments).stdout))
    (kept,) = (checkpoint_model / "evaluations").iterdir()
    kept.unlink()
    facts = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, *map(str, arguments)],
            env={**environment(), **facts, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in (0, 1)
    ]
    try:
        while len(list(kept.parent.glob(".unfinished-*/rows-*.json"))) < 40:
            assert ranks[1].poll() is None
            time.sleep(0.01)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    again = bytelm(*arguments, "--processes", processes)
    assert "an evaluation that did not end goes on" in again.stderr
    assert undated(json.loads(again.stdout)) == expected
    assert list(kept.parent.iterdir()) == [kept]
