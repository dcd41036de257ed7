"""Scores of rows: what a byte's place and the codec features were, and sums without rounding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.codec_reference import Payload
from helpers.commands import TINY_MODEL
from helpers.sets import SetMaker, audio, image, text
from torch import Tensor

from bytelm.modalities import framing
from bytelm.modalities.evaluation_head import ERRORS, MATCH_LENGTHS, MATCHES
from bytelm.model.codec_features import layout
from bytelm.model.config import ModelConfig
from bytelm.model.layout import PatchBatch
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import EvaluationRows
from bytelm.pipelines.evaluation import BOTH, SLIDING, STRIDED
from bytelm.pipelines.evaluation.codec_outcomes import ABSENT, codec_outcomes
from bytelm.pipelines.evaluation.documents import documents_by_shard
from bytelm.pipelines.evaluation.scoring import (
    Scores,
    context_positions,
    nats_of_model,
    scored_rows,
    segments_in_row,
)
from bytelm.pipelines.evaluation.windows import score_documents
from bytelm.pipelines.shards.reader import ShardSet

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
PATCH = 8
CONFIG = PlanConfig(256, PATCH, VIEWS)


def model(**options: bool) -> Megabyte:
    torch.manual_seed(4)
    config = {**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.3, **options}
    return Megabyte(ModelConfig.from_dict(config)).eval()


def batches(shard_set: ShardSet, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    plan = Plan([Source(shard_set)], CONFIG)
    return iter(make_loader(plan, EvaluationRows(plan.rows(0), 2, rank, ranks), 0))


def test_a_model_without_a_preference_among_bytes_scores_exactly_eight(
    mixed_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits of all bytes are equal, those of the special ids lie far below, in fp32."""
    logits = torch.full((framing.VOCAB_SIZE,), 12.3)
    logits[256:] = -1e6

    def uniform_nats(model: Megabyte, output: Tensor, patches: PatchBatch) -> Tensor:
        targets = patches.ids[:, -PATCH:].reshape(-1)
        nats = F.cross_entropy(logits.expand(len(targets), -1), targets, reduction="none")
        return nats.view(-1, PATCH)

    monkeypatch.setattr(Megabyte, "_lower_nats", uniform_nats)
    scores, nats_of = Scores(PATCH), nats_of_model(model(), "fp32")
    for batch in batches(mixed_set):
        scores.add_batch(batch, nats_of(batch))
    assert {name: f["bits_per_byte"] for name, f in scores.figures().items()} == dict.fromkeys(
        ("text", "image", "audio", "total"), 8.0
    )
    assert np.isnan(scores.figures()["total"]["coded_bits_per_byte"]), "EOM has no finite score"
    for maps in scores.maps().values():
        for bit_map in maps:
            assert bit_map.bits == tuple(8.0 * size for size in bit_map.bytes)


@pytest.mark.parametrize("codec_features", [False, True])
def test_maps_add_up_to_the_figures_of_a_model(mixed_set: ShardSet, codec_features: bool) -> None:
    nats_of = nats_of_model(model(codec_features=codec_features), "fp32")
    scores = Scores(PATCH)
    for batch in batches(mixed_set):
        scores.add_batch(batch, nats_of(batch))
    figures, maps = scores.figures(), scores.maps()
    assert set(maps) == {"text", "image", "audio"}
    for name, modality_maps in maps.items():
        total = figures[name]["bits_per_byte"] * figures[name]["payload_bytes"]
        for bit_map in modality_maps:
            assert abs(sum(bit_map.bits) - total) < 1e-9, (name, bit_map.name)
            assert sum(bit_map.bytes) == figures[name]["payload_bytes"]
    codec_maps = {
        (name, m.name) for name, ms in maps.items() for m in ms if m.name.startswith("codec")
    }
    expected = {("text", "codec_match"), ("image", "codec_error"), ("audio", "codec_error")}
    assert codec_maps == (expected if codec_features else set())
    sums = [figures[name]["bits_per_byte"] * figures[name]["payload_bytes"] for name in maps]
    total = figures["total"]["bits_per_byte"] * figures["total"]["payload_bytes"]
    assert abs(sum(sums) - total) < 1e-9


def test_sums_are_the_same_for_every_order_and_number_of_ranks(mixed_set: ShardSet) -> None:
    nats_of = nats_of_model(model(), "fp32")
    scored = [(batch, nats_of(batch)) for batch in batches(mixed_set)]
    assert len(scored) > 3
    one = Scores(PATCH)
    for batch, nats in scored:
        one.add_batch(batch, nats)
    ranks = [Scores(PATCH) for _ in range(3)]
    for number, (batch, nats) in enumerate(reversed(scored)):
        ranks[number % 3].add_batch(batch, nats)
    columns = [[r.heads[name].sums.tolist() for r in ranks] for name in one.heads]
    summed = iter([[sum(values) for values in zip(*parts, strict=True)] for parts in columns])
    ranks[0].reduce(lambda values, dtype: next(summed))
    assert ranks[0].figures() == one.figures()
    assert ranks[0].maps() == one.maps()


def test_context_begins_anew_with_each_document() -> None:
    document = np.array([0, 0, 1, 2, 2, 2, -1, -1], np.int32)
    expected = [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert context_positions(document, 2).tolist() == expected


def test_segments_know_their_document_and_their_place(make_set: SetMaker) -> None:
    """A caption and its image are one document, so the image's bytes have the caption before."""
    shard_set = make_set([[text(b"sea"), image(4, 2, 1)], [text(b"x" * 300)]])
    found = []
    for batch in batches(shard_set):
        for row in scored_rows(batch, torch.ones(batch.ids.shape)):
            found += [(row, item) for item in segments_in_row(row)]
    by_size = {item.segment.payload.size: item for _, item in found}
    caption, picture = by_size[3], by_size[8]
    assert caption.document == picture.document
    assert caption.segment.context.tolist() == [8, 9, 10]
    assert picture.segment.context.tolist() == list(range(8 + 8 + 16, 8 + 8 + 16 + 8))
    assert picture.segment.patch_position.tolist() == list(range(8))
    parts = sorted(
        (item.segment for _, item in found if item.segment.payload[0] == ord("x")),
        key=lambda segment: segment.offset,
    )
    assert [part.offset for part in parts] == [0, 248]
    assert [part.is_last for part in parts] == [False, True]
    assert sum(len(part.frame_nats) for part in parts) == 6 + 2, "opening, EOM and EOD"


def test_matches_are_those_of_a_search_byte_by_byte(make_set: SetMaker) -> None:
    data = b"the whale, the white whale, the sea and the whale" * 2
    shard_set = make_set([[text(data)]])
    (batch,) = batches(shard_set)
    assert batch.codec_features is None
    nats_of_model(model(codec_features=True), "fp32")(batch)
    assert batch.codec_features is not None
    (row, *_) = scored_rows(batch, torch.ones(batch.ids.shape))
    (found,) = segments_in_row(row)
    matcher, expected = Payload(), []
    for byte in data:
        longest = [k for k, candidate in enumerate(matcher.candidates) if candidate >= 0]
        is_right = bool(longest) and matcher.candidates[longest[-1]] == byte
        result = "right" if is_right else "wrong"
        expected.append(
            f"match of {(4, 6, 8)[longest[-1]]} bytes, {result}" if longest else "no match"
        )
        matcher.push(byte)
    assert found.segment.match is not None
    assert [MATCHES[index] for index in found.segment.match] == expected
    assert len(set(expected)) >= 5
    assert found.segment.error is not None
    assert not found.segment.error.any(), "a text has no predictions"


def test_errors_are_distances_from_the_first_prediction(make_set: SetMaker) -> None:
    """The first pixels of a line of an image of equal pixels: the first of them is a surprise."""
    picture = image(8, 2, 1)
    even = type(picture)("image", picture.header, bytes([200] * 16))
    (batch,) = batches(make_set([[even]]))
    nats_of_model(model(codec_features=True), "fp32")(batch)
    (row, *_) = scored_rows(batch, torch.ones(batch.ids.shape))
    (found,) = segments_in_row(row)
    assert found.segment.error is not None
    assert [ERRORS[e] for e in found.segment.error] == ["128–255", *["0"] * 15]
    sound = make_set([[audio(30, seed=2)]], "sound")
    (batch,) = batches(sound)
    nats_of_model(model(codec_features=True), "fp32")(batch)
    (row, *_) = scored_rows(batch, torch.ones(batch.ids.shape))
    (found,) = segments_in_row(row)
    assert found.segment.match is not None
    assert not found.segment.match.any()
    assert batch.codec_features is not None
    payload = slice(16, 16 + 60)
    predicted = batch.codec_features[0, payload, 0].int().numpy()
    distance = np.abs(predicted - found.segment.payload.astype(int))
    distance[::2] = np.minimum(distance[::2], 256 - distance[::2])  # high bytes have a sign
    assert found.segment.error is not None
    assert found.segment.error.tolist() == [1 + int(d).bit_length() for d in distance]


@pytest.mark.parametrize("scoring", [SLIDING, STRIDED, BOTH])
def test_bytes_stand_where_they_do_in_the_window_that_counts(
    make_set: SetMaker, scoring: str
) -> None:
    """A text of several windows: behind the first one, sliding bytes have half a window before
    them, and strided ones stand in the first half of their patch."""
    plan = Plan([Source(make_set([[text(b"the white whale " * 60)]]))], CONFIG)
    ((document,),) = ([d.load(PATCH) for d in shard] for shard in documents_by_shard(plan))
    nats_of = nats_of_model(model(codec_features=True), "fp32")
    (scored,) = score_documents([document], nats_of, CONFIG, 2, scoring)
    (found,) = segments_in_row(scored.row())
    segment, behind = found.segment, slice(256 + PATCH, None)
    assert segment.is_last
    assert segment.payload.size == 960
    assert (segment.context < 256).all()
    assert (segment.context % PATCH == segment.patch_position).all()
    assert (segment.context[behind].min() >= 256 // 2 - PATCH) == (scoring in (SLIDING, BOTH))
    assert (segment.patch_position[behind] < PATCH // 2).all() == (scoring in (STRIDED, BOTH))
    assert segment.match is not None
    found_matches = {MATCHES[index] for index in segment.match}
    assert {"no match", "match of 8 bytes, right"} <= found_matches
    scores = Scores(PATCH)
    scores.add(found)
    for bit_map in scores.maps()["text"]:
        assert sum(bit_map.bytes) == 960


def test_the_labels_of_matches_are_those_of_the_codec_features() -> None:
    assert MATCH_LENGTHS == layout.MATCH_LENGTHS


def test_rows_without_codec_features_have_no_outcomes() -> None:
    match, error = codec_outcomes(None, np.zeros(16, np.uint16))
    assert (match == ABSENT).all()
    assert (error == ABSENT).all()
