"""Experiments: scoring, peers' nats, schedules, the search, kept runs, and the commands."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from helpers.commands import TINY_MODEL, environment
from helpers.sets import SetMaker, audio, image, text
from rich.console import Console
from torch import Tensor, nn

from bytelm.modalities import framing
from bytelm.model.config import ModelConfig
from bytelm.model.flops import training_flops_per_byte
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.config import OptimizerConfig, ViewsConfig
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.samplers import EvaluationRows
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.muon import Muon
from bytelm.tools.benchmarks.peers import PEERS
from bytelm.tools.experiments import harness, quality_table
from bytelm.tools.experiments.corpora import Corpora
from bytelm.tools.experiments.harness import Budget, Result, Run, RunCache, summarize
from bytelm.tools.experiments.models import (
    SEARCH_SPACES,
    BytelmModel,
    PeerModel,
    SearchSpace,
    Settings,
    optimizer_config,
    precision,
)
from bytelm.tools.experiments.recipes import ABLATIONS, BASE
from bytelm.tools.experiments.scaling import SIZES, Fit, recipe, scaling_figures

TINY = ModelConfig.from_dict(
    {**TINY_MODEL, "tie_embeddings": False, "embedding_std": 1.0, "init_std": 0.3}
)
SETTINGS = Settings(32, 1, 8, 1e-3)


@pytest.fixture
def sets(make_set: SetMaker) -> dict[str, ShardSet]:
    """Two sets of texts and one each of images and sounds."""
    rng = np.random.default_rng(3)
    words = [b"whale ", b"sea ", b"ship ", b"white "]

    def texts(*counts: int) -> list[list]:
        return [[text(b"".join(rng.choice(words, n)))] for n in counts]

    return {
        "tales": make_set(texts(10, 50, 200), "tales", val=texts(30, 90)),
        "lists": make_set(texts(5, 400), "lists", val=texts(7)),
        "dots": make_set([[image(9, 8, seed=s)] for s in range(4)], "dots", val=[[image(7, 7)]]),
        "hiss": make_set([[audio(300, seed=1)]], "hiss", val=[[audio(200, seed=2)]]),
    }


@pytest.fixture
def corpora(sets: dict[str, ShardSet]) -> Corpora:
    return Corpora(sets, PlanConfig(TINY.context, TINY.patch, vars(ViewsConfig())))


def rows_of(corpora: Corpora, name: str) -> list[Batch]:
    """The rows of a set's `val`, one in each batch."""
    plan = corpora.val[name]
    return list(make_loader(plan, EvaluationRows(plan.rows(0), 1, 0, 1), 0))


def tiny_bytelm(lr: float = 1e-3, config: ModelConfig = TINY) -> BytelmModel:
    torch.manual_seed(0)
    return BytelmModel(config, optimizer_config("muon", lr))


@pytest.mark.parametrize("is_mixing", [False, True])
def test_scores_are_those_of_evaluate(
    sets: dict[str, ShardSet], corpora: Corpora, tmp_path: Path, is_mixing: bool
) -> None:
    config = replace(TINY, codec_features=is_mixing, output_mixing=is_mixing)
    model = tiny_bytelm(config=config)
    result = Result(*harness.score_sets(model, corpora.val, None), 0, 0, 0, 0.0)
    save_pretrained(model.module, config, tmp_path / "model", {"views": corpora.config.views})
    assert corpora.by_modality == {"text": ["tales", "lists"], "image": ["dots"], "audio": ["hiss"]}
    for modality, names in corpora.by_modality.items():
        locations = [sets[name].location for name in names]
        expected = evaluate(tmp_path / "model", locations, "val", 2, precision()).model
        bits = result.bits_per_byte(names)
        assert bits == pytest.approx(expected[modality]["bits_per_byte"], rel=1e-4)
        counted = sum(result.payload_bytes[name] for name in names)
        assert counted == expected[modality]["payload_bytes"]
    assert sum(result.payload_bytes.values()) == corpora.val_bytes()


def test_a_part_of_val_is_its_first_rows(corpora: Corpora) -> None:
    _, counted = harness.score_sets(tiny_bytelm(), corpora.val, 1)
    for name, count in counted.items():
        assert count == int(rows_of(corpora, name)[0].payload.sum())


class Bigrams(nn.Module):
    """A model with the peers' interface: an id's logits are the table's row of the preceding id."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(framing.VOCAB_SIZE + 1, framing.VOCAB_SIZE))

    def after(self, ids: Tensor) -> Tensor:
        """Logits [B, T, V], those at position t of id t + 1, as the peers return them."""
        return self.table[ids]

    def loss(self, ids: Tensor) -> Tensor:
        """Mean nats of ids that are not PAD; the table's last row is that of the first id."""
        preceding = F.pad(ids[:, :-1], (1, 0), value=framing.VOCAB_SIZE)
        return F.cross_entropy(self.table[preceding][0], ids[0], ignore_index=framing.PAD)


def test_peers_nats_line_up_with_ids_and_add_up_to_their_loss(corpora: Corpora) -> None:
    torch.manual_seed(0)
    bigrams = Bigrams()
    peer = PeerModel(bigrams, bigrams.loss, bigrams.after, lr=1e-3)
    for batch in rows_of(corpora, "tales"):
        nats, ids = peer.nats(batch)[0], batch.ids[0].long().tolist()
        assert framing.PAD in ids
        for position, (previous, id_) in enumerate(itertools.pairwise([framing.VOCAB_SIZE, *ids])):
            expected = -bigrams.table[previous].log_softmax(0)[id_]
            assert nats[position].item() == pytest.approx(expected.item(), abs=1e-5)
        counted = batch.ids[0].long() != framing.PAD
        total = peer.loss(batch) * counted.sum()
        assert nats[counted].sum().item() == pytest.approx(total.item(), rel=1e-5)


def ticks() -> Callable[[], float]:
    """A clock by which each step takes a second."""
    count = itertools.count()
    return lambda: float(next(count))


def test_learning_rates_follow_the_clock(corpora: Corpora) -> None:
    assert harness.learning_rate_factor(harness.WARMUP / 2) == pytest.approx(0.5)
    assert harness.learning_rate_factor(harness.WARMUP) == pytest.approx(1)
    assert harness.learning_rate_factor(1) == 0
    model = BytelmModel(TINY, OptimizerConfig(muon_lr=2e-3, lr=1e-3))
    assert isinstance(model.optimizer, Muon)
    assert harness.train(model, corpora.train, Budget(10.0), ticks()) == (9, 0)
    rates = {group["is_muon"]: group["lr"] for group in model.optimizer.param_groups}
    factor = harness.learning_rate_factor(0.9)
    assert 0 < factor < 0.2
    assert rates == {True: pytest.approx(2e-3 * factor), False: pytest.approx(1e-3 * factor)}


def test_flops_come_to_steps_and_rates_follow_them(corpora: Corpora) -> None:
    model = tiny_bytelm(lr=1e-3)
    row_flops = training_flops_per_byte(TINY) * TINY.context
    assert model.row_flops(TINY.context) == row_flops
    assert harness.train(model, corpora.train, Budget(7.2 * row_flops, "FLOPs"), ticks()) == (7, 0)
    rates = [group["lr"] for group in model.optimizer.param_groups if not group["is_muon"]]
    assert rates == [pytest.approx(1e-3 * harness.learning_rate_factor(6.5 / 7.2))]


def test_a_gradient_that_is_not_finite_is_dropped_and_counted(corpora: Corpora) -> None:
    bigrams = Bigrams()
    initial = bigrams.table.detach().clone()
    peer = PeerModel(bigrams, lambda ids: math.inf * bigrams.loss(ids), bigrams.after, lr=1e-3)
    assert harness.train(peer, corpora.train, Budget(4.0), ticks()) == (3, 3)
    assert torch.equal(bigrams.table, initial)


def test_finished_runs_are_not_run_again(
    sets: dict[str, ShardSet], corpora: Corpora, tmp_path: Path
) -> None:
    built: list[Settings] = []

    def build(name: str, settings: Settings, context: int) -> BytelmModel:
        assert (name, context) == ("tiny", TINY.context)
        if settings.lr > 1:
            raise KeyboardInterrupt  # somebody stops the table in the middle of this run
        built.append(settings)
        return BytelmModel(TINY, optimizer_config("adamw", settings.lr))

    def cache(data: Corpora = corpora) -> RunCache[Settings]:
        return RunCache(tmp_path / "runs", data, build, Console(quiet=True))

    runs = [Run("tiny", SETTINGS, Budget(1e-3), seed) for seed in range(2)]
    first = [cache().result(run) for run in runs]
    assert first[0].nats != first[1].nats, "a seed decides the weights"
    stopped = Run("tiny", replace(SETTINGS, lr=2.0), Budget(1e-3))
    with pytest.raises(KeyboardInterrupt):
        cache().result(stopped)
    assert len(built) == len(list((tmp_path / "runs").iterdir())) == 2

    assert [cache().result(run) for run in runs] == first
    assert len(built) == 2
    fewer = Corpora({name: s for name, s in sets.items() if name != "hiss"}, corpora.config)
    other_runs = [
        (replace(runs[0], budget=Budget(2e-3)), corpora),
        (replace(runs[0], budget=Budget(1e-3, "FLOPs")), corpora),
        (replace(runs[0], val_rows=1), corpora),
        (replace(runs[0], settings=replace(SETTINGS, lr=1e-2)), corpora),
        (runs[0], fewer),
    ]
    for count, (run, data) in enumerate(other_runs, 3):
        cache(data).result(run)
        assert len(built) == count, "not the first run"


def test_the_search_takes_the_best_of_each_axis() -> None:
    space = SearchSpace(
        lambda *_: tiny_bytelm(), ((1, 1, 8), (2, 2, 8), (3, 3, 8)), (0.1, 0.2), (False, True)
    )
    nats = {(1, 0.1): math.nan, (2, 0.1): 5.0, (3, 0.1): 6.0, (2, 0.2): 4.0, (3, 0.2): 1.0}
    asked: list[Run[Settings]] = []

    def result(run: Run[Settings]) -> Result:
        asked.append(run)
        value = nats[run.settings.width, run.settings.lr] - 0.5 * run.settings.rotary
        return Result({"a": value, "b": 3.0}, {"a": 1, "b": 2}, 1, 0, 1, 0.0)

    cache: Any = SimpleNamespace(
        corpora=SimpleNamespace(by_modality={"text": ["a"], "image": ["b"]}),
        result=result,
    )
    best = quality_table.search(cache, "tiny", space, Budget(6.0))
    assert best == Settings(2, 2, 8, 0.2, True)
    assert len(set(asked)) == quality_table.number_of_search_runs(space) == 5
    assert {(run.budget, run.val_rows) for run in asked} == {
        (Budget(6.0), quality_table.SEARCH_ROWS)
    }


def test_figures_are_means_beside_the_best_peer() -> None:
    def result(*nats: float) -> Result:
        names = ("a", "b", "c")
        bits = {name: math.log(2) * n for name, n in zip(names, nats, strict=True)}
        return Result(bits, {"a": 1, "b": 3, "c": 2}, 1, 0, 1, 0.0)

    corpora: Any = SimpleNamespace(by_modality={"text": ["a", "b"], "image": ["c"]})
    results = {
        "modern": [result(1, 3, 2), result(2, 3, 6)],
        PEERS[0]: [result(4, 4, 8)],
        PEERS[1]: [result(3, 4, 10)],
    }
    figures = {figure.name: figure for figure in summarize("quality", results, corpora, PEERS)}
    ours = figures["quality/text/modern"]
    assert ours.value == pytest.approx((4 / 4 + 5 / 4) / 2)
    assert ours.details["spread"] == pytest.approx(0.125)  # deviation 0.177 / sqrt(2)
    assert ours.reference == pytest.approx(7 / 4)
    assert ours.ratio == pytest.approx(1.125 / 1.75)
    assert figures["quality/image/modern"].reference == pytest.approx(4)
    assert figures["quality/a/modern"].value == pytest.approx(1.5)
    assert figures["quality/b/mblm"].details["spread"] is None
    assert "quality/c/modern" not in figures, "the only set of its modality"
    alone = list(summarize("quality", {"modern": results["modern"]}, corpora, PEERS))
    assert all(figure.ratio is None for figure in alone)


@pytest.mark.parametrize("name", [name for name in SEARCH_SPACES if name not in PEERS])
def test_our_models_build_and_train(name: str, corpora: Corpora) -> None:
    model = SEARCH_SPACES[name].build(Settings(128, 1, 8, 1e-3), TINY.context)
    (batch, *_) = rows_of(corpora, "hiss")
    assert model.nats(batch).shape == batch.ids.shape
    model.loss(batch).backward()
    assert all(p.grad is not None for p in model.module.parameters())
    assert isinstance(model.optimizer, Muon) == (name != "paper")


def test_a_set_of_several_modalities_is_refused(mixed_set: ShardSet) -> None:
    with pytest.raises(ValueError, match="text and image and audio"):
        Corpora({"mixed": mixed_set}, PlanConfig(TINY.context, TINY.patch, vars(ViewsConfig())))


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_change_is_built_and_is_another_run(
    name: str, sets: dict[str, ShardSet], tmp_path: Path
) -> None:
    change, base = ABLATIONS[name], ABLATIONS["base"]
    recipe, plan = change.recipe(), change.plan_config()
    assert (plan.row_length, plan.patch) == (recipe.model.context, recipe.model.patch)
    differs = (recipe, plan) != (base.recipe(), base.plan_config())
    assert differs == (name != "base")
    with torch.device("meta"):
        Megabyte(recipe.model)
    Corpora(sets, plan)


Command = Callable[..., tuple[list[dict[str, Any]], str]]


@pytest.fixture
def experiment(tmp_path: Path) -> Command:
    """Runs a script for a moment on a folder of texts and one of images.

    Returns its figures and what it printed on stderr.
    """
    rng = np.random.default_rng(0)
    for split, size, side in (("train", 9_000, 60), ("val", 300, 9)):
        (tmp_path / "text" / split).mkdir(parents=True)
        (tmp_path / "image" / split).mkdir(parents=True)
        (tmp_path / "text" / split / "a.txt").write_bytes(bytes(rng.integers(97, 123, size, "u1")))
        pixels = rng.integers(0, 256, (side, side, 3), "u1")
        PIL.Image.fromarray(pixels).save(tmp_path / "image" / split / "a.png")

    def run(tool: str, *options: str, status: int = 0) -> tuple[list[dict[str, Any]], str]:
        command = [sys.executable, "-m", f"bytelm.tools.{tool}", str(tmp_path / "text")]
        command += [str(tmp_path / "image"), "--work", str(tmp_path / "work")]
        command += ["--minutes", "1e-4", *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == status, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    return run


def test_the_ablations_command_prints_each_change_beside_the_base(experiment: Command) -> None:
    figures, messages = experiment("experiments.ablations", "--only", "adamw")
    names = [f"ablation/{m}/{name}" for m in ("text", "image") for name in ("base", "adamw")]
    assert [figure["name"] for figure in figures] == names
    assert figures[0]["ratio"] == 1
    assert figures[1]["reference"] == figures[0]["value"]
    assert all(figure["spread"] is not None for figure in figures), "two seeds"
    assert messages.count("adamw, 0.0001 min") == 2
    again, messages = experiment("experiments.ablations", "--only", "adamw")
    assert again == figures
    assert "0.0001 min" not in messages


def test_one_model_for_all_is_beside_one_for_each(experiment: Command) -> None:
    figures, messages = experiment("experiments.mixing", "--seeds", "0")
    names = [f"mixed/{m}/{how}" for m in ("text", "image") for how in ("alone", "together")]
    assert [figure["name"] for figure in figures] == names
    assert figures[1]["reference"] == figures[0]["value"]
    assert "text-alone, 5e-05 min" in messages


def test_sizes_are_beside_a_fit_of_all_but_the_last() -> None:
    curve, results, flops = Fit(1.0, 80.0, 0.15), {}, []
    for i, size in enumerate(SIZES):
        steps = 40 * 2**i
        flops.append(training_flops_per_byte(recipe(*size).model) * BASE.context * steps)
        bits = curve(flops[-1]) + 0.1 * (i == len(SIZES) - 1)  # the last is worse than it should be
        of_seeds = [bits - 0.01, bits + 0.01]
        results[size] = [
            Result({"a": math.log(2) * 1000 * b}, {"a": 1000}, steps, 0, 0, 0.0) for b in of_seeds
        ]
    *sizes, ten, hundred = scaling_figures("text", ["a"], results)
    assert [figure.details["flops"] for figure in sizes] == flops
    assert all(figure.details["spread"] == pytest.approx(0.01) for figure in sizes)
    for figure in sizes[:-1]:
        assert figure.value == pytest.approx(figure.reference, rel=1e-6)
    last = sizes[-1]
    assert last.reference is not None
    assert last.value - last.reference == pytest.approx(0.1, rel=1e-3)
    assert ten.value == pytest.approx(curve(10 * flops[-1]), rel=1e-4)
    assert hundred.value == pytest.approx(curve(100 * flops[-1]), rel=1e-4)
    assert ten.reference == last.value
    # The curve has a floor, so a power law predicts less for more FLOPs.
    assert hundred.details["power_law"] < ten.details["power_law"] < ten.value


def test_a_size_that_takes_no_step_is_one_line(experiment: Command) -> None:
    figures, messages = experiment("experiments.scaling", "--seeds", "0", status=2)
    assert not figures
    assert "took no step" in messages.splitlines()[-1]


def test_a_fit_finds_the_curve() -> None:
    curve = Fit(1.2, 300.0, 0.2)
    flops = [1e11, 2e11, 4e11, 9e11]
    found = Fit.of(flops, [curve(x) for x in flops], has_floor=True)
    assert found(1e13) == pytest.approx(curve(1e13), rel=1e-6)
    falling = [3.0, 2.0, 1.2, 0.5]  # as if to below 0
    assert Fit.of(flops, falling, has_floor=True).floor == 0.0
    curve = Fit(0.0, 20.0, 0.08)
    found = Fit.of(flops, [curve(x) for x in flops], has_floor=False)
    assert found(1e13) == pytest.approx(curve(1e13), rel=1e-6)
