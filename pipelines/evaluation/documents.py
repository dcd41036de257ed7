"""The documents of a plan's sources, in an order that every rank knows without reading them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bytelm.modalities.base import Bytes, Sample
from bytelm.modalities.framing import Segment
from bytelm.pipelines.data.plan import Plan
from bytelm.pipelines.data.windows import segment_length
from bytelm.pipelines.evaluation.windows import Document
from bytelm.pipelines.shards.format import Index, Shard
from bytelm.pipelines.shards.reader import ShardSet


@dataclass(frozen=True)
class StoredDocument:
    """A document as it lies in a shard; `load` reads its payloads."""

    source: int
    """Number of the plan's source."""
    shard_set: ShardSet
    shard: Shard
    index: Index
    """[segments] index rows."""
    segments: Sequence[Segment]

    def load(self, patch: int) -> Document:
        """The document with its payloads; DamageError where the stored bytes are damaged."""
        return Document(self.segments, [payload for _, payload in self.samples(patch)])

    def samples(self, patch: int) -> list[tuple[Sample, Bytes]]:
        """The sample of each segment with its payload [n] under the plan's view.

        Raises DamageError where the stored bytes are damaged.
        """
        samples = (self.shard_set.sample(self.shard, row) for row in self.index)
        return [
            (sample, segment.modality.to_view(sample, segment.view, patch))
            for segment, sample in zip(self.segments, samples, strict=True)
        ]


def documents_by_shard(plan: Plan) -> Iterator[Iterator[StoredDocument]]:
    """The documents of each shard of a plan's sources.

    Read those of a shard before the next one is asked for: the files of a remote shard may go then.
    """
    for number, source in enumerate(plan.sources):
        for shard in source.set.one_by_one(source.set.split(source.split)):
            yield _documents_of(plan, number, shard)


def document_groups(plan: Plan, rows: int) -> Iterator[list[StoredDocument]]:
    """The documents of a plan's sources in groups of one shard, each of about `rows` full rows.

    The groups depend on the indexes alone, so that ranks that share them out find the same ones.
    """
    limit, patch = rows * plan.config.row_length, plan.config.patch
    for documents in documents_by_shard(plan):
        group: list[StoredDocument] = []
        ids = 0
        for document in documents:
            group.append(document)
            ids += sum(segment_length(segment, patch) for segment in document.segments)
            if ids >= limit:
                yield group
                group, ids = [], 0
        if group:
            yield group


def _documents_of(plan: Plan, source: int, shard: Shard) -> Iterator[StoredDocument]:
    shard_set = plan.sources[source].set
    index = shard_set.index(shard)
    first = np.flatnonzero(np.diff(index["document"].astype(np.int64), prepend=-1))
    for begin, end in zip(first, [*first[1:], len(index)], strict=True):
        rows = index[begin:end]
        segments = [plan.segment(row) for row in rows]
        yield StoredDocument(source, shard_set, shard, rows, segments)
