"""Batches: the same for any ranks and workers, and true to the documents."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from conftest import SetMaker, audio, image, text

from bytelm.modalities import MODALITIES, framing
from bytelm.pipelines.loader import (
    Batch,
    EvaluationRows,
    RowDataset,
    TrainingRows,
    collate,
    make_loader,
)
from bytelm.pipelines.plan import Plan, PlanConfig, Source
from bytelm.pipelines.shards import DamageError, ShardSet

VIEWS = {"text": "utf8", "image": "planar", "audio": "s16be"}


def plan_of(shard_set: ShardSet, **changes: object) -> Plan:
    values: dict[str, object] = {"row_length": 256, "patch": 8, "views": VIEWS, "window_shards": 2}
    return Plan([Source(shard_set)], PlanConfig(**{**values, **changes}))  # type: ignore[arg-type]


def global_batches(
    plan: Plan, ranks: int, workers: int, start: tuple[int, int], count: int
) -> list[torch.Tensor]:
    """[count] tensors [G, L] of ids, put together from what each rank reads."""
    rows, accumulation = 8, 2
    micro = rows // ranks // accumulation
    parts = []
    for rank in range(ranks):
        sampler = TrainingRows(plan, start, micro, accumulation, rank, ranks)
        batches = islice(make_loader(plan, sampler, workers), count * accumulation)
        parts.append(torch.cat([b.ids.long() for b in batches]))
    each = [part.reshape(count, rows // ranks, -1) for part in parts]
    return list(torch.cat(each, dim=1))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_global_batches_do_not_depend_on_ranks_and_workers(
    mixed_set: ShardSet, ranks: int, workers: int
) -> None:
    """Ten batches of eight rows go into the third epoch; the last seven are made again from
    where they begin."""
    plan = plan_of(mixed_set)
    assert 2 * plan.rows(0) < 10 * 8
    reference = global_batches(plan, 1, 0, (0, 0), 10)
    assert all(map(torch.equal, global_batches(plan, ranks, workers, (0, 0), 10), reference))
    *_, (epoch, row) = islice(plan.positions(0, 0), 3 * 8 + 1)
    resumed = global_batches(plan, ranks, workers, (epoch, row), 7)
    assert all(map(torch.equal, resumed, reference[3:]))


@pytest.mark.parametrize("packing", ["whole", "cut"])
def test_rows_give_the_documents_back(mixed_set: ShardSet, packing: str) -> None:
    plan = plan_of(mixed_set, packing=packing)
    dataset = RowDataset(plan)
    payloads: dict[tuple[str, str], dict[int, bytes]] = {}
    ends = {framing.EOM: 0, framing.EOD: 0}
    for number in range(plan.rows(0)):
        row = dataset[0, number]
        for end in ends:
            ends[end] += int((row.framed.ids == end).sum())
        for segment in framing.parse(row.framed.ids, plan.config.patch):
            assert row.framed.payload[segment.payload].all()
            assert row.framed.scored[segment.payload].all()
            assert row.framed.scored[segment.preamble].all() == (segment.offset == 0)
            patch = row.document[segment.preamble.start // plan.config.patch]
            key = row.origins[patch].key
            piece = row.framed.ids[segment.payload].astype(np.uint8).tobytes()
            payloads.setdefault((key, segment.modality.name), {})[segment.offset] = piece
        scored = row.framed.scored
        assert not scored[row.framed.ids == framing.PAD].any()
    expected = {}
    documents = 0
    for shard in mixed_set.split("train"):
        documents += shard.documents
        for index_row in mixed_set.index(shard):
            sample = mixed_set.sample(shard, index_row)
            view = VIEWS[sample.modality]
            payload = MODALITIES[sample.modality].to_view(sample, view, plan.config.patch)
            expected[mixed_set.key(shard, index_row), sample.modality] = payload.tobytes()
    found = {key: b"".join(parts[o] for o in sorted(parts)) for key, parts in payloads.items()}
    assert found == expected
    assert ends == {framing.EOM: len(expected), framing.EOD: documents}


def test_evaluation_covers_every_row_once_with_equal_batches_per_rank() -> None:
    for rows, batch, ranks in ((7, 2, 2), (8, 2, 2), (1, 3, 4)):
        samplers = [list(EvaluationRows(rows, batch, rank, ranks)) for rank in range(ranks)]
        assert len({len(s) for s in samplers}) == 1 == len({len(b) for s in samplers for b in s})
        flat = [p for s in samplers for b in s for p in b if p is not None]
        assert sorted(flat) == [(0, r) for r in range(rows)]


def test_filler_rows_score_nothing(mixed_set: ShardSet) -> None:
    batch: Batch = collate([RowDataset(plan_of(mixed_set))[None]])
    assert (batch.ids.long() == framing.PAD).all()
    assert (batch.document == -1).all()
    assert not batch.scored.any()


def test_a_changed_byte_is_named(make_set: SetMaker) -> None:
    shard_set = make_set([[image(4, 4)], [audio(20)], [text(b"moby dick")]])
    shard = shard_set.shards[0]
    place = int(shard_set.index(shard)[2]["offset"]) + 2
    with open(shard_set.folder / shard.name, "r+b") as file:
        file.seek(place)
        file.write(b"X")
    plan = plan_of(ShardSet(shard_set.folder))
    assert plan.rows(0) == 1
    with pytest.raises(DamageError, match=r"train-000000\.tar: document train-2 .*checksum"):
        RowDataset(plan)[0, 0]
