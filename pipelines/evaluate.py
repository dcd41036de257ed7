"""Bits per byte of a model on a shard set, for each modality and in total, and the codecs beside.

bits per byte = Σ nats / (ln 2 · Σ payload bytes): nats summed in float64, bytes in integers.

    B rows    L ids in a row    P ids in a patch
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import EvaluationHead, ScoredSegment
from bytelm.pipelines import checkpoint, windows
from bytelm.pipelines.baselines import CodecSizes
from bytelm.pipelines.config import open_set
from bytelm.pipelines.engine import autocast
from bytelm.pipelines.loader import Batch, EvaluationRows, make_loader
from bytelm.pipelines.packing import PlanConfig
from bytelm.pipelines.plan import Plan, Source

TOTAL = "total"
T = TypeVar("T")


class Scores:
    """The evaluation heads of all modalities, and their sum over ranks."""

    def __init__(self) -> None:
        self.heads: dict[str, EvaluationHead] = {n: m.head() for n, m in MODALITIES.items()}

    def reduce(self, sum_over_ranks: Callable[[list[Any], torch.dtype], list[Any]]) -> None:
        """Replace every sum by the sum over ranks; every rank has to call it."""
        for head in self.heads.values():
            nats = sum_over_ranks(list(head.nats.values()), torch.float64)
            counts = sum_over_ranks(list(head.counts.values()), torch.int64)
            head.nats = dict(zip(head.nats, nats, strict=True))
            head.counts = dict(zip(head.counts, counts, strict=True))

    def metrics(self) -> dict[str, dict[str, float]]:
        """The figures of each modality that was scored, and of all bytes together."""
        total = EvaluationHead()
        for head in self.heads.values():
            for name in total.nats:
                total.nats[name] += head.nats[name]
            for name in total.counts:
                total.counts[name] += head.counts[name]
        heads = {n: h for n, h in self.heads.items() if h.counts["payload_bytes"]}
        return {
            name: {**head.metrics(), "payload_bytes": head.counts["payload_bytes"]}
            for name, head in {**heads, TOTAL: total}.items()
        }


def score(
    scores: Scores, nats: Callable[[Batch], Tensor], batches: Iterable[Batch], patch: int
) -> None:
    """Add the batches' segments to the heads.

    Args:
        nats: gives [B, L] nats of each id of a batch.
    """
    for batch in batches:
        values = nats(batch).to("cpu", torch.float64).numpy()
        for row in zip(batch.ids.numpy(), batch.scored.numpy(), values, strict=True):
            _add(scores, *row, patch)


def _add(
    scores: Scores,
    ids: npt.NDArray[np.uint16],
    scored: npt.NDArray[np.bool_],
    nats: npt.NDArray[np.float64],
    patch: int,
) -> None:
    """Add the segments in [n] ids to the heads."""
    for segment in framing.parse(ids, patch):
        frame = [nats[part][scored[part]] for part in (segment.preamble, segment.ends)]
        scores.heads[segment.modality.name].update(
            ScoredSegment(
                header=segment.header,
                view=segment.view,
                offset=segment.offset,
                payload=ids[segment.payload].astype(np.uint8),
                payload_nats=nats[segment.payload],
                frame_nats=np.concatenate(frame),
            )
        )


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
    model, seen = checkpoint.load_model(model_path)
    # Shard after shard: the order of the rows does not matter, and few are in use at once.
    config = PlanConfig(model.config.context, model.config.patch, seen.views, window_shards=1)
    plan = Plan([Source(shard_set, split) for shard_set in sets], config)
    device = model.lm_head.weight.device

    @torch.no_grad()
    def nats(rows: Batch) -> Tensor:
        with autocast(device, precision):
            ids, document, modality, hints = rows.inputs(device)
            return model(ids, document, modality, hints=hints)

    scores, patch, title = Scores(), model.config.patch, f"scoring {split}"
    if way == windows.PLAIN:
        loader = make_loader(plan, EvaluationRows(plan.rows(0), batch, 0, 1), 0)
        score(scores, nats, _shown(loader, len(loader), title), patch)
    else:
        documents = windows.scored_documents(plan, nats, batch, way)
        count = sum(shard.documents for s in plan.sources for shard in s.set.split(s.split))
        for document in _shown(documents, count, title):
            framed = document.framed
            _add(scores, framed.ids, framed.scored, document.nats, patch)
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
