"""Batches: independent of ranks and workers, and exact copies of the documents."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.sets import SetMaker, audio, image, text

from bytelm.modalities import MODALITIES, framing
from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.config import ModelConfig
from bytelm.model.layout import Layout
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.row_dataset import RowDataset
from bytelm.pipelines.data.samplers import EvaluationRows, TrainingRows
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.shards.format import CRC_CHUNK
from bytelm.pipelines.shards.reader import ShardSet

VIEWS = {"text": "utf8", "image": "planar", "audio": "s16be"}


def plan_of(shard_set: ShardSet, **changes: Any) -> Plan:
    values: dict[str, Any] = {"row_length": 256, "patch": 8, "views": VIEWS, "shuffle_window": 2}
    return Plan([Source(shard_set)], PlanConfig(**{**values, **changes}))


def global_batches(
    plan: Plan, ranks: int, workers: int, start: tuple[int, int], count: int
) -> list[torch.Tensor]:
    """[count] tensors [G, L] of ids, assembled from the batches of all ranks."""
    rows, accumulation = 8, 2
    micro = rows // ranks // accumulation
    parts = []
    for rank in range(ranks):
        sampler = TrainingRows(plan, start, micro, accumulation, rank, ranks)
        batches = islice(make_loader(plan, sampler, workers), count * accumulation)
        parts.append(torch.cat([b.ids.long() for b in batches]))
    by_rank = [part.reshape(count, rows // ranks, -1) for part in parts]
    return list(torch.cat(by_rank, dim=1))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_global_batches_do_not_depend_on_ranks_and_workers(
    mixed_set: ShardSet, ranks: int, workers: int
) -> None:
    """Ten batches of eight rows reach into the third epoch; a second loader that starts at the
    fourth batch repeats the last seven."""
    plan = plan_of(mixed_set)
    assert 2 * plan.rows(0) < 10 * 8
    reference = global_batches(plan, 1, 0, (0, 0), 10)
    assert all(map(torch.equal, global_batches(plan, ranks, workers, (0, 0), 10), reference))
    *_, (epoch, row) = islice(plan.positions(0, 0), 3 * 8 + 1)
    resumed = global_batches(plan, ranks, workers, (epoch, row), 7)
    assert all(map(torch.equal, resumed, reference[3:]))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_bring_the_codec_features_and_the_layout_that_the_model_would_make(
    mixed_set: ShardSet, workers: int
) -> None:
    plan = plan_of(mixed_set)
    torch.manual_seed(0)
    stages = [{"width": 32, "layers": 1, "heads": 2}, {"width": 16, "layers": 1, "heads": 2}]
    # The model's patch is half of the plan's.
    values = {
        "stages": stages,
        "patch_sizes": [4],
        "context": 256,
        "init_std": 0.3,
        "codec_features": True,
    }
    model = Megabyte(ModelConfig.from_dict(values)).eval()
    rows = EvaluationRows(plan.rows(0), 2, 0, 1)
    for batch in make_loader(plan, rows, workers, codec_patch=model.config.patch):
        ids, document, modality, features, layout = batch.inputs(torch.device("cpu"))
        assert features is not None
        assert torch.equal(features, compute_codec_features(ids, document, 4))
        assert layout is not None
        expected = Layout.of(document)
        assert layout.groups == expected.groups
        assert torch.equal(layout.order, expected.order)
        assert torch.equal(layout.position, expected.position)
        assert torch.equal(layout.cu_seqlens, expected.cu_seqlens)
        with torch.no_grad():
            nats = model(ids, document, modality, features, layout)
            assert torch.equal(nats, model(ids, document, modality))
            assert not torch.equal(
                nats, model(ids, document, modality, codec_features=features.roll(1, 1))
            )


@pytest.mark.parametrize("packing", ["best_fit", "concat_then_split"])
@pytest.mark.parametrize(
    "views",
    [
        {"text": "utf8", "image": "raster", "audio": "s16le"},
        {"text": "utf8", "image": "planar", "audio": "s16be"},
        {"text": "utf8", "image": "raster", "audio": "u8"},
        {"text": "utf8", "image": "planar", "audio": "mulaw"},
    ],
)
def test_rows_give_the_documents_back(
    mixed_set: ShardSet, packing: str, views: dict[str, str]
) -> None:
    plan = plan_of(mixed_set, packing=packing, views=views)
    dataset = RowDataset(plan)
    payloads: dict[tuple[str, int, str], dict[int, bytes]] = {}
    ends = {framing.EOM: 0, framing.EOD: 0}
    for number in range(plan.rows(0)):
        batch = dataset.__getitems__([(0, number)])
        ids, document = batch.ids[0].numpy(), batch.document[0].numpy()
        scored, payload = batch.scored[0].numpy(), batch.payload[0].numpy()
        (origin,) = batch.origins
        assert origin
        row = plan.row(0, number)
        piece_documents = row.index["document"][np.unique(row.spans.document, return_index=True)[1]]
        assert set(origin.documents) == set(piece_documents.tolist())
        for end in ends:
            ends[end] += int((ids == end).sum())
        for segment in framing.parse(ids, plan.config.patch):
            assert payload[segment.payload].all()
            assert scored[segment.payload].all()
            assert scored[segment.ends].all()
            assert scored[segment.preamble].all() == (segment.offset == 0)
            assert (batch.modality[0].numpy()[segment.payload] == segment.modality.code).all()
            piece = document[segment.preamble.start // plan.config.patch]
            key = (origin.shard, int(piece_documents[piece]), segment.modality.name)
            data = ids[segment.payload].astype(np.uint8).tobytes()
            payloads.setdefault(key, {})[segment.offset] = data
            assert segment.view == views[segment.modality.name]
        assert not scored[ids == framing.PAD].any()
        assert payload.sum() == sum(len(ids[s.payload]) for s in framing.parse(ids, 8))
    expected, count = {}, 0
    for shard in mixed_set.split("train"):
        count += shard.documents
        for member in mixed_set.index(shard):
            sample = mixed_set.sample(shard, member)
            view = MODALITIES[sample.modality].to_view(sample, views[sample.modality], 8)
            expected[shard.name, int(member["document"]), sample.modality] = view.tobytes()
    joined = {key: b"".join(parts[o] for o in sorted(parts)) for key, parts in payloads.items()}
    assert joined == expected
    assert ends == {framing.EOM: len(expected), framing.EOD: count}


def test_a_long_document_is_read_in_pieces(make_set: SetMaker) -> None:
    """One text of many checksum chunks: each row reads only its own chunks."""
    data = np.random.default_rng(0).bytes(10 * CRC_CHUNK + 77)
    plan = plan_of(make_set([[text(data)]]), row_length=4096)
    dataset = RowDataset(plan)
    pieces = {}
    for number in range(plan.rows(0)):
        ids = dataset.__getitems__([(0, number)]).ids[0].numpy()
        for _, _, _, offset, payload in framing.unframe(ids, 8):
            pieces[offset] = payload.tobytes()
    assert b"".join(pieces[o] for o in sorted(pieces)) == data


def test_evaluation_covers_every_row_once_with_equal_batches_per_rank() -> None:
    for rows, batch, ranks in ((7, 2, 2), (8, 2, 2), (1, 3, 4)):
        samplers = [list(EvaluationRows(rows, batch, rank, ranks)) for rank in range(ranks)]
        assert len({len(s) for s in samplers}) == 1 == len({len(b) for s in samplers for b in s})
        flat = [p for s in samplers for b in s for p in b if p is not None]
        assert sorted(flat) == [(0, r) for r in range(rows)]


def test_padding_rows_score_nothing(mixed_set: ShardSet) -> None:
    batch = RowDataset(plan_of(mixed_set)).__getitems__([None, None])
    assert (batch.ids.long() == framing.PAD).all()
    assert (batch.document == -1).all()
    assert not batch.scored.any()


def test_a_changed_byte_is_named_or_masked(make_set: SetMaker, tmp_path: Path) -> None:
    shard_set = make_set([[image(4, 4)], [audio(20)], [text(b"moby dick")]])
    shard = shard_set.shards[0]
    intact = ShardSet(shutil.copytree(shard_set.location, tmp_path / "intact"))
    byte = int(shard_set.index(shard)[2]["offset"]) + 2
    with open(Path(shard_set.location) / shard.name, "r+b") as file:
        file.seek(byte)
        file.write(b"X")
    plan = plan_of(ShardSet(shard_set.location))
    assert plan.rows(0) == 1
    masked = RowDataset(plan, mask_damage=True).__getitems__([(0, 0)])
    assert [d.size for d in masked.damage] == [9]
    assert "train-2" in masked.damage[0].cause
    assert masked.payload.sum() == 4 * 4 * 3 + 40
    complete = RowDataset(plan_of(intact)).__getitems__([(0, 0)])
    intact_ids = masked.payload.numpy()
    assert (masked.ids.numpy()[intact_ids] == complete.ids.numpy()[intact_ids]).all()
    lost = complete.scored.numpy() & ~masked.scored.numpy()
    assert (masked.ids.numpy()[lost] == framing.PAD).all()
    assert lost.sum() == 1 + 5 + 9 + 2, "SOM, header, payload, EOM, EOD"
    with pytest.raises(DamageError, match=r"train-000000\.tar: document train-2 .*checksum"):
        RowDataset(plan).__getitems__([(0, 0)])
