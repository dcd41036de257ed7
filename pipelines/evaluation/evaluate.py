"""Bits per byte of a model on a shard set, for each modality and in total, and the codecs beside.

bits per byte = Σ nats / (ln 2 · Σ payload bytes): nats summed in float64, bytes in integers.

    B rows    L ids in a row    P ids in a patch
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bytelm.modalities import MODALITIES
from bytelm.pipelines.checkpoints import load
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import EvaluationRows
from bytelm.pipelines.evaluation import windows
from bytelm.pipelines.evaluation.codec_sizes import CodecSizes
from bytelm.pipelines.evaluation.scoring import Scores, T, add_rows, score
from bytelm.pipelines.runtime.device import autocast
from bytelm.pipelines.shards.reader import open_set


def evaluate(
    model_path: Path,
    set_paths: Sequence[str],
    split: str,
    batch: int,
    precision: str,
    way: str = windows.PLAIN,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Score a model on every document of a split of one or more sets.

    Args:
        way: plain, by pieces as in training, or one of the others of `windows.py`.
    Returns:
        for each modality and `total` the model's figures, and for each modality the bits per
        byte of the codecs on the same bytes.
    Raises:
        ValueError: for a model or a set that is missing or of another format, an empty split, a
            way that the model does not have.
    """
    sets = [open_set(path) for path in set_paths]
    model, seen = load.load_model(model_path)
    # Shard after shard: the order of the rows does not matter, and few are in use at once.
    config = PlanConfig(model.config.context, model.config.patch, seen.views, shuffle_window=1)
    plan = Plan([Source(shard_set, split) for shard_set in sets], config)
    device = model.lm_head.weight.device

    @torch.no_grad()
    def nats(rows: Batch) -> Tensor:
        with autocast(device, precision):
            ids, document, modality, codec_features = rows.inputs(device)
            return model(ids, document, modality, codec_features=codec_features)

    scores, patch, title = Scores(), model.config.patch, f"scoring {split}"
    if way == windows.PLAIN:
        loader = make_loader(plan, EvaluationRows(plan.rows(0), batch, 0, 1), 0)
        score(scores, nats, _shown(loader, len(loader), title), patch)
    else:
        documents = windows.scored_documents(plan, nats, batch, way)
        count = sum(shard.documents for s in plan.sources for shard in s.set.split(s.split))
        for document in _shown(documents, count, title):
            framed = document.framed
            add_rows(scores, framed.ids, framed.scored, document.nats, patch)
    return scores.metrics(), codecs(plan)


def codecs(plan: Plan) -> dict[str, dict[str, float]]:
    """Bits per byte of each codec on the documents of a plan."""
    sizes = {name: CodecSizes() for name in MODALITIES}
    shards = [(s.set, s.set.split(s.split)) for s in plan.sources]
    each = ((set_, shard) for set_, own in shards for shard in set_.one_by_one(own))
    for set_, shard in _shown(each, sum(len(own) for _, own in shards), "codecs"):
        for row in set_.index(shard):
            segment = plan.segment(row)
            sample = set_.sample(shard, row)
            payload = segment.modality.to_view(sample, segment.view, plan.config.patch)
            sizes[segment.modality.name].add(sample, payload)
    return {name: s.bits_per_byte() for name, s in sizes.items() if s.bits_per_byte()}


def _shown(items: Iterable[T], count: int, description: str) -> Iterable[T]:
    """The items, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    return track(items, description, total=count, console=console, disable=not console.is_terminal)
