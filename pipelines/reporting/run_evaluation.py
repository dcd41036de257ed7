"""The evaluation that a report shows: one that a run's folder keeps, or one that is made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bytelm.pipelines.errors import one_line
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.evaluation.records import (
    EVALUATIONS_FOLDER,
    keep_evaluation,
    read_evaluation,
)
from bytelm.pipelines.reporting.run_data import RunData
from bytelm.pipelines.runtime.progress import stderr_console
from bytelm.pipelines.shards.reader import open_set

SPLIT = "val"
SECONDS = 60.0
"""Time that an evaluation may take of which the user set no limit, about."""
_CODEC_SPEED = 40_000.0
"""Bytes that all codecs together compress in a second."""
_BYTES_PER_SECOND = 20_000.0
"""Training speed of a run whose metrics do not tell it."""


def evaluation_of(run: RunData, limit: int | None) -> tuple[dict[str, Any] | None, list[str]]:
    """The evaluation of a run's newest checkpoint on `val`, which is made where it is missing.

    Args:
        limit: documents to score; 0 scores none, None as many as take about a minute.
    Returns:
        the evaluation as JSON holds it, or None, and lines about what is missing.
    """
    kept = kept_evaluations(run.folder)
    newest = run.checkpoint_steps[0] if run.checkpoint_steps else None
    of_newest = next((e for e in kept if e["about"]["step"] == newest), None)
    if of_newest or newest is None:
        found = of_newest or (kept[0] if kept else None)
        return found, [] if found else ["there is no checkpoint yet: the model is not evaluated"]
    remark = f"the newest checkpoint, of step {newest:,}, is not evaluated"
    older = kept[0] if kept else None
    if older:
        remark += f"; the evaluation shown is of step {older['about']['step']:,}"
    if limit == 0:
        return older, [f"{remark} (--limit 0)"]
    try:
        return _evaluate(run, limit), []
    except (ValueError, OSError) as error:
        return older, [f"{remark}: {one_line(error)}"]


def kept_evaluations(run: Path) -> list[dict[str, Any]]:
    """The evaluations on `val` in a run's folder, of the newest step first.

    Of one step, that of the most documents is first. Files that cannot be read are passed over.
    """
    found = []
    for path in sorted((run / EVALUATIONS_FOLDER).glob("step-*.json")):
        try:
            evaluation = read_evaluation(path)
        except ValueError:
            continue
        if evaluation.about.get("split") == SPLIT:
            order = (evaluation.about.get("step") or 0, len(evaluation.documents))
            found.append((order, evaluation.to_dict()))
    return [values for _, values in sorted(found, key=lambda item: item[0], reverse=True)]


def _evaluate(run: RunData, limit: int | None) -> dict[str, Any]:
    """Evaluate a run's newest checkpoint on the `val` splits of its sets, and keep the result."""
    paths = [entry.path for entry in run.sets if entry.report is not None]
    documents, size = 0, 0
    with_val = []
    for path in paths:
        shards = open_set(path).split(SPLIT)
        if count := sum(shard.documents for shard in shards):
            with_val.append(path)
            documents += count
            size += sum(sum(shard.bytes.values()) for shard in shards)
    if not with_val:
        raise ValueError(f"no set that can be read has documents in {SPLIT}")
    if limit is None:
        seconds = size * (1 / _scoring_speed(run) + 1 / _CODEC_SPEED)
        limit = max(1, round(documents * SECONDS / max(seconds, 1)))
    shown = min(limit, documents)
    stderr_console().print(
        f"evaluating {run.folder} on {shown:,} of {documents:,} documents of {SPLIT}",
        highlight=False,
        soft_wrap=True,
    )
    result = evaluate(
        run.folder, with_val, SPLIT, 1, "fp32", limit=None if shown == documents else shown
    )
    keep_evaluation(run.folder, result)
    return result.to_dict()


def _scoring_speed(run: RunData) -> float:
    """Bytes that this machine scores in a second, by the speed of training of one rank.

    A step of training computes three times what scoring does; it may have used bf16.
    """
    speeds = run.metrics.train.get("bytes_per_second")
    if speeds is None or not np.isfinite(speeds).any():
        return _BYTES_PER_SECOND
    ranks = run.sessions[-1].get("ranks", 1) if run.sessions else 1
    return float(np.nanmedian(speeds)) / max(ranks, 1)
