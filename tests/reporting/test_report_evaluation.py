"""Which evaluation a report shows, and when it makes one of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.evaluations import ABOUT, made_up_evaluation
from helpers.run_folders import write_run
from helpers.sets import image, text, write_set

from bytelm.pipelines.evaluation import PLAIN, SLIDING
from bytelm.pipelines.evaluation.records import Evaluation, keep_evaluation
from bytelm.pipelines.reporting import run_evaluation
from bytelm.pipelines.reporting.run_data import RunData, read_run
from bytelm.pipelines.reporting.run_evaluation import evaluation_of, kept_evaluations
from bytelm.pipelines.shards.reader import ShardSet

STEP = 40


@pytest.fixture
def shard_set(tmp_path: Path) -> ShardSet:
    """Three texts and an image in `val`."""
    val = [*([text(b"call me " * n)] for n in (3, 9, 20)), [image(9, 7)]]
    return write_set(tmp_path / "set", [[text(b"whale " * 200)]], val=val)


@pytest.fixture
def run(tmp_path: Path, shard_set: ShardSet) -> RunData:
    """A run with a checkpoint of step 40 in name."""
    folder = write_run(tmp_path / "run", sets=[shard_set.location])
    data = read_run(folder)
    data.checkpoint_steps.append(STEP)
    return data


def keep(run: RunData, shard_set: ShardSet, documents: str, **about: Any) -> dict[str, Any]:
    """Keep an evaluation of documents of one byte whose modalities' initials are given."""
    names = {"t": "text", "i": "image"}
    entries = [
        {"key": str(n), "set": shard_set.location, "modality": names[c], "bytes": 1, "bits": 2.0}
        for n, c in enumerate(documents)
    ]
    sets = [{"path": shard_set.location, "root": shard_set.root}]
    facts = {"step": STEP, "sets": sets, "limit": len(documents), **about}
    made = made_up_evaluation(facts, documents=entries)
    keep_evaluation(run.folder, made)
    return made.to_dict()


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of the evaluations that are made; each has one document and is not really made."""
    calls: list[tuple[Any, ...]] = []

    def made(*arguments: Any) -> Evaluation:
        calls.append(arguments)
        return made_up_evaluation({**ABOUT, "step": STEP, "model": "new"})

    monkeypatch.setattr(run_evaluation, "evaluate", made)
    return calls


def test_the_newest_plain_evaluation_of_most_own_documents_comes_first(
    run: RunData, shard_set: ShardSet, tmp_path: Path
) -> None:
    other = write_set(tmp_path / "other", [[text(b"other")]], val=[[text(b"another")]])
    older = keep(run, shard_set, "ttti", step=30)
    sliding = keep(run, shard_set, "ttti", scoring=SLIDING)
    few = keep(run, shard_set, "ti")
    foreign = keep(run, other, "tttttti")
    most = keep(run, shard_set, "tti")
    keep(run, shard_set, "ttti", split="train")
    assert kept_evaluations(run) == [most, few, foreign, sliding, older]


@pytest.mark.parametrize(
    ("documents", "about"),
    [("i", {}), ("ttti", {"step": 30}), ("ttt", {"scoring": SLIDING})],
    ids=["no text", "older", "no image"],
)
def test_an_evaluation_is_made_where_modalities_of_the_newest_step_lack(
    documents: str,
    about: dict[str, Any],
    run: RunData,
    shard_set: ShardSet,
    scored: list[tuple[Any, ...]],
) -> None:
    kept = keep(run, shard_set, documents, **about)
    shown, (remark,) = evaluation_of(run, 0)
    assert shown == kept
    assert "of step 40" in remark
    assert not scored
    shown, remarks = evaluation_of(run, None)
    assert shown
    assert (shown["about"]["model"], remarks) == ("new", [])
    ((folder, paths, *_, scoring, limit),) = scored
    assert (folder, paths, scoring, limit) == (run.folder, [shard_set.location], PLAIN, None)
    assert len(list((run.folder / "evaluations").iterdir())) == 2


@pytest.mark.parametrize(("documents", "limit"), [("ti", None), ("ti", 4), ("ttt", 3), ("t", 1)])
def test_a_kept_evaluation_with_all_modalities_or_documents_enough_is_shown(
    documents: str,
    limit: int | None,
    run: RunData,
    shard_set: ShardSet,
    scored: list[tuple[Any, ...]],
) -> None:
    kept = keep(run, shard_set, documents)
    assert evaluation_of(run, limit) == (kept, [])
    assert not scored
