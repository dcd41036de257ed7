"""The evaluation that a report shows: one that a run's folder keeps, or one that is made for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bytelm.pipelines.errors import cause_of
from bytelm.pipelines.evaluation import PLAIN
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.evaluation.records import (
    EVALUATIONS_FOLDER,
    keep_evaluation,
    read_evaluation,
)
from bytelm.pipelines.reporting.run_data import RunData
from bytelm.pipelines.runtime.progress import stderr_console

SPLIT = "val"
SECONDS = 60.0
"""Time that an evaluation may take of which the user set no limit, about."""
_CODEC_SPEED = 40_000.0
"""Bytes that all codecs together compress in a second."""
_BYTES_PER_SECOND = 20_000.0
"""Training speed of a run whose metrics do not tell it."""


def evaluation_of(run: RunData, limit: int | None) -> tuple[dict[str, Any] | None, list[str]]:
    """The evaluation of a run's newest checkpoint on `val`.

    It is made and kept where the run's folder has none of it, or one of too few documents to hold
    every modality of the run's sets.

    Args:
        limit: documents to score; 0 scores none, None as many as take about a minute.
    Returns:
        the evaluation as JSON holds it, or None, and lines about what is missing.
    """
    best = next(iter(kept_evaluations(run)), None)
    if not run.checkpoint_steps:
        return best, [] if best else ["there is no checkpoint yet: the model is not evaluated"]
    number = _number_to_score(run) if limit is None else limit
    remark = _shortcoming(run, best, number)
    if remark is None:
        return best, []
    if limit == 0:
        return best, [f"{remark} (--limit 0)"]
    try:
        return _evaluate(run, number), []
    except (ValueError, OSError) as error:
        return best, [f"{remark}: {cause_of(error)}"]


def kept_evaluations(run: RunData) -> list[dict[str, Any]]:
    """The evaluations on `val` in a run's folder, the one to show first.

    That is one of the newest step, by plain scoring, and of the most documents of the run's own
    sets. Files that cannot be read are passed over.
    """
    found = []
    for path in sorted((run.folder / EVALUATIONS_FOLDER).glob("step-*.json")):
        try:
            evaluation = read_evaluation(path).to_dict()
        except ValueError:
            continue
        about = evaluation["about"]
        if about.get("split") == SPLIT:
            own, scored = len(_own_documents(run, evaluation)), len(evaluation["documents"])
            order = (about.get("step") or 0, about.get("scoring") == PLAIN, own, scored)
            found.append((order, evaluation))
    return [values for _, values in sorted(found, key=lambda item: item[0], reverse=True)]


def _own_documents(run: RunData, evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of an evaluation's documents that are of a run's sets."""
    roots = {entry.root for entry in run.sets if entry.root}
    own = {entry["path"] for entry in evaluation["about"]["sets"] if entry["root"] in roots}
    return [document for document in evaluation["documents"] if document["set"] in own]


def _shortcoming(run: RunData, evaluation: Mapping[str, Any] | None, number: int) -> str | None:
    """Why an evaluation is not the one to show; None for one that is.

    Args:
        number: documents that a new one would score: more of them make up for a lack.
    """
    newest = run.checkpoint_steps[0]
    text = f"the newest checkpoint, of step {newest:,}, is not evaluated"
    if evaluation is None:
        return text
    step = evaluation["about"]["step"]
    if step != newest:
        return f"{text}; the evaluation shown is of step {step:,}"
    own = _own_documents(run, evaluation)
    in_val = {name for entry in run.sets for name in entry.val_bytes}
    lacking = sorted(in_val - {document["modality"] for document in own})
    in_sets = sum(entry.val_documents for entry in run.sets)
    scored = len({(document["set"], document["key"]) for document in own})
    if not lacking or 0 < min(number, in_sets) <= scored:
        return None
    return f"the evaluation of step {newest:,} lacks {', '.join(lacking)} of the run's sets"


def _number_to_score(run: RunData) -> int:
    """The documents of the run's sets that take about SECONDS."""
    size = sum(sum(entry.val_bytes.values()) for entry in run.sets)
    seconds = size * (1 / _scoring_speed(run) + 1 / _CODEC_SPEED)
    documents = sum(entry.val_documents for entry in run.sets)
    return max(1, round(documents * min(1, SECONDS / max(seconds, 1))))


def _evaluate(run: RunData, number: int) -> dict[str, Any]:
    """Evaluate a run's newest checkpoint on documents of its sets' `val`, and keep the result."""
    with_val = [entry for entry in run.sets if entry.val_documents]
    if not with_val:
        raise ValueError(f"no set that can be read has documents in {SPLIT}")
    documents = sum(entry.val_documents for entry in with_val)
    shown = min(number, documents)
    stderr_console().print(
        f"evaluating {run.folder} on {shown:,} of {documents:,} documents of {SPLIT}",
        highlight=False,
        soft_wrap=True,
    )
    paths = [entry.path for entry in with_val]
    limit = None if shown == documents else shown
    result = evaluate(run.folder, paths, SPLIT, 1, "fp32", PLAIN, limit)
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
