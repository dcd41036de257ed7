"""A start on a set of 10,000 shards reads the ends of its manifest and few indexes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import write_config

from bytelm.pipelines.config import RunConfig, ViewsConfig, load_config
from bytelm.pipelines.data.counting import count_rows
from bytelm.pipelines.data.dataset_info import MAX_SHARDS, DatasetInfo
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.evaluation.segment_sums import SegmentSums
from bytelm.pipelines.shards.format import SET_MANIFEST
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.store import LocalStore
from bytelm.pipelines.training.data_profile import SetProfile
from bytelm.pipelines.training.preflight import (
    CHECKED_SHARDS,
    ResumeOptions,
    check,
    plan_config,
    training_plan,
)
from bytelm.pipelines.training.sample_requests import sample_requests
from bytelm.tools.benchmarks.large_set import write_large_set

SHARDS = 10_000


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A config of a set whose counts of rows are there."""
    folder = tmp_path_factory.mktemp("large")
    plan = PlanConfig(256, 8, vars(ViewsConfig()))
    large = write_large_set(folder / "set", SHARDS, 20, plan)
    path = write_config(folder / "run.yaml", large, steps=3, global_batch=1)
    return load_config(path, [])


class Reads:
    """Names of the files of a local set that are asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def of(self, beginning: str, suffix: str) -> list[str]:
        """Those whose names begin and end so, each once."""
        names = dict.fromkeys(self.names)
        return [name for name in names if name.startswith(beginning) and name.endswith(suffix)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads()
    path_of = LocalStore.path

    def path(self: LocalStore, blob: Blob) -> Path:
        found.names.append(blob.name)
        return path_of(self, blob)

    monkeypatch.setattr(LocalStore, "path", path)
    return found


def test_a_start_does_not_go_through_all_shards(
    config: RunConfig, reads: Reads, tmp_path: Path
) -> None:
    check(config, tmp_path, 1, ResumeOptions())
    shard_set = config.open_set(0)
    info = DatasetInfo.of(plan := training_plan(config))
    sample_requests([shard_set], info)
    SegmentSums(plan)
    SetProfile.of(shard_set, config.model.patch)
    manifest = json.loads((Path(shard_set.location) / SET_MANIFEST).read_bytes())
    first, _, last = (part["name"] for part in manifest["parts"])
    assert sorted(reads.of("manifest-", ".npy")) == sorted([first, last]), "val is in the last part"
    assert len(reads.of("train-", ".npy")) <= MAX_SHARDS
    assert len(reads.of("train-", ".tar")) == CHECKED_SHARDS


def test_a_row_anywhere_needs_one_index_and_one_part(config: RunConfig, reads: Reads) -> None:
    rows = training_plan(config).rows(0)
    assert rows > SHARDS
    for number in (0, rows // 2, rows - 1):
        plan = training_plan(config)
        reads.names.clear()
        plan.row(0, number)
        assert len(reads.of("train-", ".npy")) == 1
        assert len(reads.of("manifest-", ".npy")) == 1
        assert not reads.of("train-", ".tar")


def test_the_counts_of_the_synthetic_set_are_those_of_its_shards(config: RunConfig) -> None:
    """The number of rows; rows without payload, and so the cost, depend on the shard's name."""
    shard_set = ShardSet(config.data.sets[0].path)
    some = shard_set.split("train")[5_000:5_003]
    counted = count_rows(shard_set, some, plan_config(config))
    assert counted.rows.tolist() == training_plan(config).tables[0].rows[5_000:5_003].tolist()
