"""A report draws a few samples itself where a run has none, and says what it left out."""

from __future__ import annotations

import pytest
import torch
from helpers.sets import SetMaker, audio, image, text
from helpers.tiny_models import tiny_config

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.reporting.fresh_samples import draw_fresh_samples
from bytelm.pipelines.shards.reader import ShardSet

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


@pytest.fixture
def drawing(make_set: SetMaker) -> tuple[Megabyte, DatasetInfo, list[ShardSet]]:
    documents = [[text(b"call me " * 20)], [image(6, 6, seed=5)], [audio(40, seed=6)]]
    shard_set = make_set(documents, val=documents)
    torch.manual_seed(0)
    model = Megabyte(tiny_config("two", context=128)).eval()
    plan = Plan([Source(shard_set, "train")], PlanConfig(128, model.config.patch, VIEWS))
    return model, DatasetInfo.of(plan), [shard_set]


def test_a_few_samples_of_each_kind_are_drawn(
    drawing: tuple[Megabyte, DatasetInfo, list[ShardSet]],
) -> None:
    drawn, problems = draw_fresh_samples(*drawing)
    kinds = [(d.sample.modality, d.prompt is not None, d.given_share) for d in drawn]
    assert not problems
    assert sorted(set(kinds), key=str) == [
        *(("audio", True, 0.25), ("image", False, 0.0), ("image", True, 0.5)),
        ("text", True, pytest.approx(0.25, abs=0.1)),
    ]
    assert all(kinds.count(kind) <= 2 for kind in kinds)


def test_what_there_is_no_time_for_has_a_line(
    drawing: tuple[Megabyte, DatasetInfo, list[ShardSet]],
) -> None:
    drawn, (problem,) = draw_fresh_samples(*drawing, seconds=-1)
    assert not drawn
    assert problem.startswith("8 of the samples would have taken longer than -1 s to draw")
