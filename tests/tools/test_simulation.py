"""The simulation of clusters: its arithmetic, its command, and that its costs can be measured."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from bytelm.model.flops import training_flops_per_byte
from bytelm.model.presets import preset
from bytelm.pipelines.prepare.file_status import THREADS as STATUS_THREADS
from bytelm.tools import simulate
from bytelm.tools.simulation.cluster import Cluster, Workload
from bytelm.tools.simulation.costs import COSTS_FILE, Costs
from bytelm.tools.simulation.estimate import Estimate
from bytelm.tools.simulation.failures import CheckpointTimes, expected_loss, simulated_loss
from bytelm.tools.simulation.measure_prepare import PrepareAmounts, measure_prepare
from bytelm.tools.simulation.measure_training import TrainingAmounts, measure_training
from bytelm.tools.simulation.prepare_model import PrepareModel
from bytelm.tools.simulation.training_model import TrainingModel

COSTS = Costs.load(COSTS_FILE)
TERABYTE = 1e12


def prepared(terabytes: float, ranks: int) -> dict[str, Estimate]:
    model = PrepareModel(COSTS.prepare, Cluster(ranks), Workload(terabytes * TERABYTE))
    return {estimate.name: estimate for estimate in model.estimates()}


def trained(terabytes: float, ranks: int, name: str = "modern-1b") -> dict[str, Estimate]:
    model = TrainingModel(COSTS.training, Cluster(ranks), Workload(terabytes * TERABYTE), name)
    return {estimate.name: estimate for estimate in model.estimates()}


def test_listing_grows_with_the_documents_and_not_with_the_nodes() -> None:
    small, large, on_many = prepared(1, 8), prepared(10, 8), prepared(10, 1024)
    each = COSTS.prepare.list_file_seconds + Cluster(8).shared_latency / STATUS_THREADS
    assert small["list/files"].value == pytest.approx(1e7 * each)
    assert large["list/files"].value == pytest.approx(10 * small["list/files"].value)
    assert on_many["list/files"] == large["list/files"]


def test_decoding_is_divided_by_all_cores() -> None:
    costs = dataclasses.replace(
        COSTS.prepare,
        **{f"{kind}_seconds_per_byte": 1e-9 for kind in ("text", "jpeg", "png", "flac")},
    )
    model = PrepareModel(costs, Cluster(ranks=64, cores=10), Workload(TERABYTE))
    assert model.core_seconds == pytest.approx(1000)
    assert model.decode_seconds == pytest.approx(1000 / (8 * 10))


def test_saving_the_progress_costs_each_shard_about_the_same() -> None:
    small, large = (PrepareModel(COSTS.prepare, Cluster(8), Workload(s * 1e12)) for s in (1, 10))
    assert small.save_seconds * 10 <= large.save_seconds < small.save_seconds * 11


def test_a_merge_is_divided_by_its_shares_until_the_filesystem_is_busy() -> None:
    size = 100 * TERABYTE
    few, many = prepared(100, 8), prepared(100, 1024)
    assert few["merge/one-process"] == many["merge/one-process"]
    assert few["merge/shares"].value < few["merge/one-process"].value / 4
    filesystem = 2 * size / Cluster(1024).shared_disk
    assert many["merge/shares"].bound == "shared filesystem"
    assert many["merge/shares"].value > filesystem + 2 * many["merge/read"].value


def test_shards_double_until_their_numbers_have_six_digits() -> None:
    assert Workload(TERABYTE).shard_bytes == 256e6
    assert Workload(1000 * TERABYTE).shard_bytes == 2048e6
    assert Workload(1000 * TERABYTE).shards < 500_000
    assert not prepared(100, 8)["shards/default-size"].breaks
    assert "--shard-mb 2048" in prepared(1000, 8)["shards/default-size"].breaks


def test_a_rank_trains_at_the_speed_of_its_accelerator() -> None:
    estimates = trained(1, 64, "modern-7b")
    speed = Cluster(64).rank_flops / training_flops_per_byte(preset("modern-7b"))
    assert estimates["load/rank"].value == pytest.approx(speed)
    assert estimates["load/pass"].value == pytest.approx(TERABYTE / (64 * speed))


def test_every_node_fetches_every_shard_from_a_store() -> None:
    few, many = trained(1, 64), trained(1, 128)
    assert many["store/disk"].value == pytest.approx(2 * few["store/disk"].value)
    assert many["store/egress"].value == pytest.approx(4 * few["store/egress"].value)


def test_failures_come_more_often_to_more_nodes() -> None:
    assert Cluster(1024).nodes == 128
    assert Cluster(1024).mtbf == pytest.approx(Cluster(8).mtbf / 128)
    assert trained(1, 1024)["failures/lost"].value > trained(1, 8)["failures/lost"].value


@pytest.mark.parametrize("mtbf", [3e4, 3e6])
def test_the_formula_of_lost_time_agrees_with_events_that_are_played_through(mtbf: float) -> None:
    times = CheckpointTimes(interval=600, copy=5, write=60, restart=120, mtbf=mtbf)
    assert simulated_loss(times, failures=3000) == pytest.approx(expected_loss(times), rel=0.1)


def test_the_best_interval_loses_least() -> None:
    times = CheckpointTimes(interval=600, copy=5, write=60, restart=120, mtbf=3e4)
    best = dataclasses.replace(times, interval=times.best_interval)
    others = [dataclasses.replace(times, interval=times.best_interval * f) for f in (0.5, 2)]
    assert all(expected_loss(best) < expected_loss(other) for other in others)


def test_the_command_prints_a_table_and_what_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate", "--tb", "1", "1000", "--ranks", "1024"])
    simulate.main()
    out = capsys.readouterr().out
    assert "1 TB, 1024" in out
    assert "1000 TB, 1024 ranks: list/files-memory: a listed file stays in memory" in out


def test_the_command_prints_json_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate", "--json", "--tb", "0.5", "--ranks", "8", "64"])
    simulate.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({line["name"] for line in lines}) == len(lines)
    assert {"0.5TB/8/merge/shares", "0.5TB/64/failures/lost"} <= {line["name"] for line in lines}
    assert all(line["value"] > 0 and line["unit"] for line in lines)


@pytest.mark.parametrize("arguments", [["--costs", "missing.json"], ["--model", "unknown"]])
def test_mistakes_end_with_a_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate", *arguments])
    with pytest.raises(SystemExit):
        simulate.main()
    assert capsys.readouterr().err.splitlines()[-1].startswith("simulate: error: ")


def test_costs_are_saved_and_loaded(tmp_path: Path) -> None:
    COSTS.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == COSTS
    (tmp_path / "costs.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no costs"):
        Costs.load(tmp_path / "costs.json")


def test_the_costs_of_preparing_can_be_measured() -> None:
    costs = measure_prepare(PrepareAmounts(20, 5, 2000, 20, 2, 1e5))
    assert all(value > 0 for value in vars(costs).values())


@pytest.mark.long
def test_the_costs_of_training_can_be_measured() -> None:
    costs = measure_training(TrainingAmounts(2, 20, 500, 5, 2, 10, 50, 40_000, 1000, 2, 2))
    assert all(value > 0 for value in vars(costs).values())
