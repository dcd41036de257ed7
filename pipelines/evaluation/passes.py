"""Passes of a model over the documents of a plan, shared out over ranks.

The batches that ranks deal out among them are the same for any number of ranks, and one thread
computes each (`runtime.compute_threads`), so the sums are the same to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from bytelm.model.config import ModelConfig
from bytelm.model.flops import step_bytes
from bytelm.model.output_mixing.mixer import mixing_bytes
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.plan import Plan
from bytelm.pipelines.data.samplers import EvaluationRows
from bytelm.pipelines.data.windows import segment_length
from bytelm.pipelines.evaluation import ADAPT, PLAIN, SLIDING
from bytelm.pipelines.evaluation.document_scoring import LONG_DOCUMENT
from bytelm.pipelines.evaluation.documents import (
    StoredDocument,
    document_groups,
    documents_by_shard,
)
from bytelm.pipelines.evaluation.finished_work import FinishedUnits, FinishedWork
from bytelm.pipelines.evaluation.scoring import NatsOf, Scores, scored_rows, segments_in_row
from bytelm.pipelines.evaluation.segment_sums import SegmentSums
from bytelm.pipelines.evaluation.windows import Document, ScoredDocument, score_documents
from bytelm.pipelines.runtime.compute_threads import map_in_threads
from bytelm.pipelines.runtime.memory import available_bytes, sharing_ranks
from bytelm.pipelines.runtime.progress import Progress, stderr_console
from bytelm.pipelines.runtime.ranks import Ranks

GROUP_BATCHES = 4
"""Batches that the documents of a group fill, about, in plain windows. The last row of a group is
partly empty, so small groups waste more; large ones are shared out less evenly."""

Parts = Callable[[StoredDocument], Sequence[Sequence[int]]]
"""Gives the documents to be made of some segments of a document, by the segments' numbers."""

T = TypeVar("T")
R = TypeVar("R")


def batches_in_memory(config: ModelConfig, batch: int) -> int:
    """Batches that this process's part of the free memory holds at once, but one at least.

    A pass without gradients takes less than a training step with activation checkpointing,
    which is counted here.

    Args:
        batch: rows of a batch.
    """
    size = step_bytes(replace(config, activation_checkpointing=True), batch, number=4)
    if config.output_mixing:
        size += mixing_bytes(LONG_DOCUMENT)
    return max(1, available_bytes() // (sharing_ranks() * size))


@dataclass(frozen=True)
class Scorer:
    """A model, the documents that it scores, and this rank's part in it."""

    plan: Plan
    nats_of: NatsOf
    score_in_order: Callable[[Document], ScoredDocument]
    """Scores the windows of a document one after the other, where `_goes_in_order` says so."""
    is_mixed: bool
    """Whether the model mixes its outputs."""
    batch: int
    """Rows that a thread computes at once."""
    most_threads: int
    """Batches that memory allows at once (`batches_in_memory`), or documents with `ADAPT`."""
    scoring: str
    """One of `SCORINGS`, or `ADAPT`."""
    ranks: Ranks
    work: FinishedWork
    """The units that an earlier call has scored, which are left out here, and those of this one."""

    def score(self) -> tuple[Scores, SegmentSums]:
        """Score this rank's share of the documents.

        Raises DamageError where stored bytes are damaged, as all passes do.
        """
        scores, sums = Scores(self.plan.config.patch), SegmentSums(self.plan)
        if self.scoring == PLAIN and not self.is_mixed:
            self._score_rows(scores, sums)
        else:
            self._score_windows(scores, sums)
        return scores, sums

    def score_parts(self, name: str, parts_of: Parts) -> SegmentSums:
        """Score new documents that are made of segments of this rank's share.

        The last segment of each new document counts.

        Args:
            name: of this pass, see `FinishedWork`.
        """
        sums = SegmentSums(self.plan)
        patch = self.plan.config.patch
        jobs = (
            [(stored, numbers) for stored in group for numbers in parts_of(stored)]
            for group in self._groups()
        )
        with self.work.of_pass(name, [sums]) as finished:
            loaded = (
                (number, job, [stored.load(patch).only(numbers) for stored, numbers in job])
                for number, job in self.missing((job for job in jobs if job), finished)
            )
            total = self._part_count(parts_of) - finished.size
            with self.progress(total, "parts") as progress:
                for (unit, job, _), results in self._in_threads(self._score_group, loaded):
                    for (stored, numbers), result in zip(job, results, strict=True):
                        *_, last = segments_in_row(result.row())
                        row = stored.index[numbers[-1] : numbers[-1] + 1]
                        sums.add(stored.source, stored.shard, row, [last])
                        progress.add(1)
                    finished.add(unit, len(job))
        return sums

    def progress(self, total: int, unit: str) -> Progress:
        """The progress of a work that ranks share, which rank 0 shows by its own part."""
        console = stderr_console() if self.ranks.rank == 0 else None
        return Progress(console, -(-total // self.ranks.count), unit)

    def missing(self, units: Iterable[T], finished: FinishedUnits) -> Iterator[tuple[int, T]]:
        """This rank's share of the units that are not finished, with their numbers."""
        return self.ranks.share(u for u in enumerate(units) if u[0] not in finished.done)

    def _score_rows(self, scores: Scores, sums: SegmentSums) -> None:
        """Score rows of the plan, as validation during training does."""
        rows, ranks = self.plan.rows(0), self.ranks
        with self.work.of_pass("rows", [scores, sums]) as finished:
            positions = EvaluationRows(rows, self.batch, ranks.rank, ranks.count, finished.done)
            loader = make_loader(self.plan, positions, workers=0)
            batches = zip(positions, loader, strict=True)
            scored = self._in_threads(lambda b: self.nats_of(b[1]), batches)
            with self.progress(-(-rows // self.batch) - finished.size, "batches") as progress:
                for (places, batch), nats in scored:
                    for place, row in zip(places, scored_rows(batch, nats), strict=True):
                        if place is None:
                            continue
                        planned = self.plan.row(*place)
                        found = list(segments_in_row(row))
                        sums.add(planned.source, planned.shard, planned.index, found)
                        for segment in found:
                            scores.add(segment)
                    if places[0] is not None:
                        finished.add(places[0][1] // self.batch, 1)
                    progress.add(1)

    def _score_windows(self, scores: Scores, sums: SegmentSums) -> None:
        """Score documents, each id in one of the windows that hold it."""
        count = sum(s.set.counts(s.split).documents for s in self.plan.sources)
        with self.work.of_pass("windows", [scores, sums]) as finished:
            loaded = (
                (number, group, [stored.load(self.plan.config.patch) for stored in group])
                for number, group in self.missing(self._groups(), finished)
            )
            with self.progress(count - finished.size, "documents") as progress:
                for (unit, group, _), results in self._in_threads(self._score_group, loaded):
                    for stored, result in zip(group, results, strict=True):
                        found = list(segments_in_row(result.row()))
                        sums.add(stored.source, stored.shard, stored.index, found)
                        for segment in found:
                            scores.add(segment)
                        progress.add(1)
                    finished.add(unit, len(group))

    def _in_threads(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        return map_in_threads(function, items, self.most_threads)

    def _groups(self) -> Iterator[list[StoredDocument]]:
        return document_groups(self.plan, GROUP_BATCHES * self.batch)

    def _score_group(self, item: tuple[int, Any, list[Document]]) -> list[ScoredDocument]:
        """Score the documents of an item, whose other parts go along."""
        others = [document for document in item[2] if not self._goes_in_order(document)]
        config, scoring = self.plan.config, self.scoring
        scored = iter(score_documents(others, self.nats_of, config, self.batch, scoring))
        return [
            self.score_in_order(document) if self._goes_in_order(document) else next(scored)
            for document in item[2]
        ]

    def _goes_in_order(self, document: Document) -> bool:
        """Whether each window of a document is scored behind the one before, by a model, or its
        mixing, that has read it: with strided windows, no window is the next one's past."""
        if self.scoring in (PLAIN, SLIDING) and self.is_mixed:
            config = self.plan.config
            ids = sum(segment_length(segment, config.patch) for segment in document.segments)
            return ids > config.row_length
        return self.scoring == ADAPT

    def _part_count(self, parts_of: Parts) -> int:
        """New documents that all ranks score."""
        return sum(len(parts_of(d)) for shard in documents_by_shard(self.plan) for d in shard)
