"""Bits per byte of a model on shard sets, for each modality and in total, and of codecs.

    bits per byte = Σ nats / (ln 2 · Σ payload bytes)

Bits are summed as whole numbers of 2^-18 bit (`modalities.evaluation_head`) and bytes as integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bytelm.modalities import MODALITIES
from bytelm.pipelines.checkpoints.load import load_model
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import EvaluationRows
from bytelm.pipelines.evaluation import PLAIN
from bytelm.pipelines.evaluation.codec_sizes import CodecSizes
from bytelm.pipelines.evaluation.scoring import NatsOf, Scores, nats_of_model
from bytelm.pipelines.evaluation.windows import scored_documents, shards_in_turn
from bytelm.pipelines.runtime.progress import on_stderr, tracked
from bytelm.pipelines.shards.reader import open_set

Figures = dict[str, dict[str, float]]


def evaluate(
    model_path: Path,
    set_paths: Sequence[str],
    split: str,
    batch: int,
    precision: str,
    scoring: str = PLAIN,
) -> tuple[Figures, Figures]:
    """Score a model on every document of a split of one or more sets.

    Args:
        batch: rows that the model computes at once.
        scoring: one of `SCORINGS`; `plain` scores the pieces that training reads.
    Returns:
        figures of the model for each modality and `total`, and bits per byte of each codec on the
        same bytes for each modality.
    Raises:
        ValueError: for a model or a set that is missing or of another format, an empty split, and
            a scoring that the model does not support.
    """
    sets = [open_set(path) for path in set_paths]
    model, dataset_info = load_model(model_path)
    # One shard after the other: the order of the rows does not matter, and few shards stay open.
    config = PlanConfig(
        model.config.context, model.config.patch, dataset_info.views, shuffle_window=1
    )
    plan = Plan([Source(shard_set, split) for shard_set in sets], config)
    nats_of = nats_of_model(model, precision)
    if scoring == PLAIN:
        scores = _score_rows(plan, nats_of, batch)
    else:
        scores = _score_windows(plan, nats_of, batch, scoring)
    return scores.figures(), codec_figures(plan)


def codec_figures(plan: Plan) -> Figures:
    """Bits per byte of each codec on the documents of a plan, for each modality."""
    sizes = {name: CodecSizes() for name in MODALITIES}
    with on_stderr(sum(plan.source_bytes)) as progress:
        for shard_set, shard in shards_in_turn(plan):
            for row in shard_set.index(shard):
                segment = plan.segment(row)
                sample = shard_set.sample(shard, row)
                payload = segment.modality.to_view(sample, segment.view, plan.config.patch)
                sizes[segment.modality.name].add(sample, payload)
                progress.add(payload.size)
    return {name: s.bits_per_byte() for name, s in sizes.items() if s.bits_per_byte()}


def _score_rows(plan: Plan, nats_of: NatsOf, batch: int) -> Scores:
    """Score the rows of a plan, as validation during training does."""
    scores = Scores(plan.config.patch)
    rows = EvaluationRows(plan.rows(0), batch, rank=0, ranks=1)
    for batch_rows in tracked(make_loader(plan, rows, workers=0), len(rows), "batches"):
        scores.add_batch(batch_rows, nats_of(batch_rows))
    return scores


def _score_windows(plan: Plan, nats_of: NatsOf, batch: int, scoring: str) -> Scores:
    """Score the documents of a plan, each id in one of the windows that hold it."""
    scores = Scores(plan.config.patch)
    count = sum(shard.documents for s in plan.sources for shard in s.set.split(s.split))
    documents = scored_documents(plan, nats_of, batch, scoring)
    for document in tracked(documents, count, "documents"):
        scores.add_row(document.row())
    return scores
