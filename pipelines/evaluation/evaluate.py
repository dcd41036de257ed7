"""Bits per byte of a model on shard sets, for each modality and in total, and of codecs.

    bits per byte = Σ nats / (ln 2 · Σ payload bytes)

Bits are summed as whole numbers of 2^-18 bit (`modalities.evaluation_head`) and bytes as integers.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bytelm.modalities import BY_CODE, MODALITIES
from bytelm.modalities.base import Bytes, Sample
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.load import load_model, opened_model, settled_location
from bytelm.pipelines.checkpoints.manifest import CHECKPOINT_MANIFEST
from bytelm.pipelines.checkpoints.run_folder import checkpoint_step
from bytelm.pipelines.checkpoints.untrained import adaptation_of
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.evaluation import ADAPT, PLAIN, SLIDING
from bytelm.pipelines.evaluation.codec_sizes import (
    CodecSizes,
    codec_versions,
    measure_codecs,
    missing_codecs,
    with_weights,
)
from bytelm.pipelines.evaluation.document_scoring import (
    documents_in_memory,
    score_adapting,
    score_in_order,
)
from bytelm.pipelines.evaluation.documents import documents_by_shard
from bytelm.pipelines.evaluation.finished_work import FinishedWork
from bytelm.pipelines.evaluation.intervals import bootstrap_interval
from bytelm.pipelines.evaluation.pairs import pair_figures, score_pairs
from bytelm.pipelines.evaluation.passes import Scorer, batches_in_memory
from bytelm.pipelines.evaluation.records import Evaluation, Figures
from bytelm.pipelines.evaluation.scoring import TOTAL, Scores, nats_of_model
from bytelm.pipelines.evaluation.segment_sums import (
    DOCUMENT,
    PLACE,
    Keys,
    Segments,
    added_up,
    coded_bits,
    payload_bits,
)
from bytelm.pipelines.evaluation.selection import choose_documents, document_count
from bytelm.pipelines.evaluation.windows import check_scoring
from bytelm.pipelines.runtime.device import this_device
from bytelm.pipelines.runtime.environment import versions
from bytelm.pipelines.runtime.ranks import Ranks
from bytelm.pipelines.shards.reader import ShardSet, open_set

ONE_RANK = Ranks()


def evaluate(
    model_location: str | Path,
    set_paths: Sequence[str],
    split: str,
    batch: int,
    precision: str,
    scoring: str = PLAIN,
    limit: int | None = None,
    ranks: Ranks = ONE_RANK,
    evaluations: Path | None = None,
) -> Evaluation:
    """Score a model and codecs on the documents of a split of one or more sets.

    Every rank has to call it, and returns the same evaluation. Its figures are the same for any
    number of ranks and threads.

    Args:
        model_location: as `load_model` takes it.
        batch: rows that a thread of the model computes at once.
        scoring: one of `SCORINGS`; `plain` scores the pieces that training reads. `ADAPT` scores
            each document by a copy of the model that learns from it, beginning at the model anew.
        limit: documents to score, a sample (`selection.py`); None scores all.
        evaluations: folder of a run's evaluations, where finished work is kept until the end, so
            that a call with the same arguments goes on; None keeps none.
    Raises:
        ValueError: for a model or a set that is missing or of another format, an empty split, and
            a scoring that the model does not support.
        DamageError: for stored bytes that are damaged.
    """
    settled = settled_location(model_location, ranks)
    task = ranks.together(lambda: _open(settled, set_paths, split, scoring, limit))
    model = task.model
    adaptation = adaptation_of(model_location)
    most = batches_in_memory(model.config, batch)
    in_order = partial(score_in_order, overlap=scoring == SLIDING)
    if scoring == ADAPT:
        most = documents_in_memory(model, adaptation)
        in_order = partial(score_adapting, adaptation=adaptation)
    facts = _facts(task, batch, precision, scoring)
    work = FinishedWork(evaluations if task.step is not None else None, facts, ranks)
    nats_of = nats_of_model(model, precision)
    in_order = partial(in_order, model=model, precision=precision)
    is_mixed = model.config.output_mixing
    scorer = Scorer(task.plan, nats_of, in_order, is_mixed, batch, most, scoring, ranks, work)
    scored = _score(scorer, task.info)
    sizes = _codec_sizes(scorer)
    if ranks.rank == 0:
        work.end()
    figures = scored.scores.figures()
    whole = _codec_figures(sizes, "whole")
    return Evaluation(
        about=_about(model_location, task, scorer, precision, len(scored.keys)),
        model=figures,
        intervals=_intervals(scored.segments, figures),
        maps={name: [m.to_dict() for m in maps] for name, maps in scored.scores.maps().items()},
        codecs=whole,
        codec_chunks=_codec_figures(sizes, "chunks"),
        codecs_missing=_codecs_without_figures(sizes, figures),
        codec_versions=codec_versions({codec for bits in whole.values() for codec in bits}),
        with_weights=_with_weights(figures, task.parameters),
        pairs=pair_figures(scored.segments, scored.alone, scored.turned),
        documents=_document_entries(task.plan, scored.segments, scored.keys),
    )


# --- what is scored ---


@dataclass(frozen=True)
class _Task:
    """Which documents are scored by which model."""

    model: Megabyte
    info: DatasetInfo
    step: int | None
    weights: str
    """SHA-256 of the manifest of the model's checkpoint; empty where there is none."""
    split: str
    limit: int | None
    plan: Plan
    sets: list[dict[str, str]]
    documents: int
    """Documents of the split, chosen or not."""

    @property
    def parameters(self) -> int:
        """Values of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def _open(
    model_location: str | Path,
    set_paths: Sequence[str],
    split: str,
    scoring: str,
    limit: int | None,
) -> _Task:
    sets = [open_set(path) for path in set_paths]
    _check_distinct(sets)
    with opened_model(model_location) as name:
        folder = Path(name)
        model, info = load_model(folder)
        manifest = folder.parent / CHECKPOINT_MANIFEST
        weights = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
    check_scoring(scoring, model.config.patch)
    chosen = sets if limit is None else choose_documents(sets, split, limit)
    # One shard after the other: the order of the rows does not matter, and few shards stay open.
    config = PlanConfig(model.config.context, model.config.patch, info.views, shuffle_window=1)
    return _Task(
        model=model,
        info=info,
        step=checkpoint_step(folder),
        weights=weights,
        split=split,
        limit=limit,
        plan=Plan([Source(shard_set, split) for shard_set in chosen], config),
        sets=[{"path": shard_set.location, "root": shard_set.root} for shard_set in sets],
        documents=document_count(sets, split),
    )


def _check_distinct(sets: Sequence[ShardSet]) -> None:
    """Raise ValueError for a set that is named twice, whose documents would count twice."""
    for number, shard_set in enumerate(sets):
        for other in sets[:number]:
            if other.root == shard_set.root:
                raise ValueError(
                    f"{other.location} and {shard_set.location} hold the same documents, which "
                    "would count twice: leave one out"
                )


def _facts(task: _Task, batch: int, precision: str, scoring: str) -> tuple[object, ...]:
    """All that decides the sums of an evaluation."""
    roots = tuple(chosen["root"] for chosen in task.sets)
    codecs = [CodecSizes(name).codecs for name in MODALITIES]
    machine = str(this_device()), torch.__version__, torch.backends.cpu.get_cpu_capability()
    settings = task.weights, task.split, task.limit, batch, precision, scoring
    return *settings, roots, versions()["bytelm"], *machine, codecs


def _about(
    model_location: str | Path, task: _Task, scorer: Scorer, precision: str, documents: int
) -> dict[str, Any]:
    """Facts about an evaluation: its model, sets and settings; `documents` were scored."""
    return {
        "model": str(model_location),
        "step": task.step,
        "parameters": task.parameters,
        "split": task.split,
        "scoring": scorer.scoring,
        "precision": precision,
        "limit": task.limit,
        "batch": scorer.batch,
        "documents": documents,
        "documents_in_split": task.documents,
        "sets": task.sets,
        "version": versions()["bytelm"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# --- the model ---


@dataclass(frozen=True)
class _Scored:
    """The model's scores, summed over all ranks."""

    scores: Scores
    segments: Segments
    """Every segment, as it stands in its document."""
    alone: Segments
    turned: Segments
    """Segments of pairs, as `score_pairs` returns them."""
    keys: Keys


def _score(scorer: Scorer, info: DatasetInfo) -> _Scored:
    """Score the documents and their pairs. Every rank has to call it."""
    ranks = scorer.ranks
    scores, sums = scorer.score()
    alone, turned = score_pairs(scorer, info)
    scores.reduce(ranks.sum)
    segments, alone, turned = (
        added_up(np.concatenate(ranks.gather(part)), PLACE)
        for part in (sums.segments(), alone, turned)
    )
    keys = {place: key for part in ranks.gather(sums.keys) for place, key in part.items()}
    return _Scored(scores, segments, alone, turned, keys)


# --- codecs ---


def _codec_sizes(scorer: Scorer) -> dict[str, CodecSizes]:
    """Sizes of the codecs on the documents of a plan, which ranks share out."""
    plan, ranks = scorer.plan, scorer.ranks
    sizes = {name: CodecSizes(name) for name in MODALITIES}
    with scorer.work.of_pass("codecs", list(sizes.values())) as finished:
        documents = (document for shard in documents_by_shard(plan) for document in shard)
        share = scorer.missing(documents, finished)
        numbers: deque[int] = deque()

        def samples() -> Iterator[list[tuple[Sample, Bytes]]]:
            for number, document in share:
                numbers.append(number)
                yield document.samples(plan.config.patch)

        total = sum(plan.source_bytes) - finished.size
        with scorer.progress(total, "bytes") as progress:
            for size in measure_codecs(samples(), sizes, torch.get_num_threads()):
                finished.add(numbers.popleft(), size)
                progress.add(size)
    for part in sizes.values():
        part.reduce(ranks.sum)
    return sizes


def _codec_figures(sizes: dict[str, CodecSizes], kind: str) -> Figures:
    return {n: bits for n, part in sizes.items() if (bits := part.bits_per_byte(kind))}


def _codecs_without_figures(sizes: dict[str, CodecSizes], figures: Figures) -> dict[str, str]:
    """Why a codec of the modalities that were scored has no figure."""
    missing = missing_codecs([name for name in MODALITIES if name in figures])
    for part in sizes.values():
        missing |= part.failures()
    return missing


def _with_weights(figures: Figures, parameters: int) -> Figures:
    """Bits per byte with the weights counted in."""
    sizes = {name: int(values["payload_bytes"]) for name, values in figures.items()}
    return {
        name: with_weights(figures[name]["bits_per_byte"] * size, size, parameters)
        for name, size in sizes.items()
        if size
    }


# --- documents ---


def _intervals(segments: Segments, figures: Figures) -> dict[str, dict[str, list[float]]]:
    """The bootstrap interval over documents of each modality and of all of them, where the figure
    itself is a number."""
    parts = {TOTAL: added_up(segments, DOCUMENT)}
    for code in np.unique(segments["modality"]):
        chosen = segments[segments["modality"] == code]
        parts[BY_CODE[code].name] = added_up(chosen, DOCUMENT)
    intervals = {}
    for name, documents in parts.items():
        ends = bootstrap_interval(payload_bits(documents), documents["bytes"])
        if ends is not None and not math.isnan(figures[name]["bits_per_byte"]):
            intervals[name] = {"bits_per_byte": list(ends)}
    return intervals


def _document_entries(plan: Plan, segments: Segments, keys: Keys) -> list[dict[str, Any]]:
    """An entry for each document and modality of it; bits are NaN where a score is not finite."""
    documents = added_up(segments, (*DOCUMENT, "modality"))
    locations = [source.set.location for source in plan.sources]
    columns = (documents[name].tolist() for name in (*DOCUMENT, "modality", "bytes"))
    bits = payload_bits(documents).tolist(), coded_bits(documents).tolist()
    return [
        {
            "key": keys[source, shard, number],
            "set": locations[source],
            "modality": BY_CODE[code].name,
            "bytes": size,
            "bits": payload,
            "coded_bits": coded,
        }
        for source, shard, number, code, size, payload, coded in zip(*columns, *bits, strict=True)
    ]
