"""Sequence parallelism: ranks that share rows have the nats and gradients of a single rank."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from helpers.commands import TINY_MODEL, bytelm, metrics, write_config
from helpers.tiny_models import OPTIONS, SHAPES, opened, options_of, tiny_model
from torch import Tensor

from bytelm.model.megabyte import Megabyte
from bytelm.model.sequence_parallel import SequenceParallel
from bytelm.pipelines.config import RunConfig, load_config
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training import engine as engine_module
from bytelm.pipelines.training.engine import Engine, join_process_group
from bytelm.pipelines.training.preflight import training_plan

OVERRIDES = ["optimizer.max_grad_norm=0.05", "optimizer.lr=1.0", "optimizer.warmup_steps=0"]
MODEL = {**TINY_MODEL, "cross_patch_attention": 8}


def run_ranks(function: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Call function(rank, ranks, *arguments) in processes that find each other."""
    port = free_port()
    torch.multiprocessing.spawn(_join, (function, ranks, port, *arguments), ranks)


def _join(rank: int, function: Callable[..., None], ranks: int, port: int, *arguments: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    function(rank, ranks, *arguments)
    dist.barrier()
    dist.destroy_process_group()  # or its threads sometimes abort the process


def cases(ranks: int) -> list[tuple[str, dict[str, Any]]]:
    """Every option on every shape whose heads divide by the ranks; every other one checkpointed."""
    shapes = []
    for shape in SHAPES:
        for number, option in enumerate(OPTIONS):
            options = options_of(option, shape)
            options |= {"activation_checkpointing": number % 2 == 1, "local_chunk": number % 3}
            model = tiny_model(shape, **options)
            if not model.config.stages[0].heads % ranks:
                shapes.append((shape, options))
    return shapes


def packed() -> tuple[Tensor, Tensor, Tensor]:
    """Two rows of several documents; the longest one crosses the border of two ranks."""
    generator = torch.Generator().manual_seed(5)
    ids = opened(torch.randint(0, 256, (2, 96), generator=generator), at=16)
    document = torch.tensor([[0] * 2 + [1] * 7 + [-1] * 3, [0] * 1 + [1] * 10 + [2] * 1])
    return ids, document.int(), torch.randint(0, 3, (2, 96), generator=generator).byte()


def nats_and_gradients(
    model: Megabyte, sequence_parallel: SequenceParallel | None
) -> tuple[Tensor, dict[str, Tensor]]:
    ids, document, modality = packed()
    nats = model(ids, document, modality, sequence_parallel=sequence_parallel)
    weights = torch.linspace(0.5, 1.5, nats.numel(), dtype=nats.dtype).view_as(nats)
    (nats * weights).sum().backward()
    return nats.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def compare_with_one_rank(rank: int, ranks: int) -> None:
    dist.init_process_group("gloo")
    sequence_parallel = SequenceParallel(dist.group.WORLD, ranks, rank)
    for shape, options in cases(ranks):
        model = tiny_model(shape, context=96, **options).double()
        expected, expected_gradients = nats_and_gradients(model, None)
        model.zero_grad()
        nats, gradients = nats_and_gradients(model, sequence_parallel)
        if rank == 0:
            assert (nats == 0).float().mean() == pytest.approx(1 - 1 / ranks)
        for part in (nats, *gradients.values()):
            dist.all_reduce(part)
        torch.testing.assert_close(nats, expected, rtol=0, atol=1e-9)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-9)


def test_two_ranks_have_the_nats_and_gradients_of_one() -> None:
    """In float64, for every option and number of stages, with documents over several ranks."""
    assert len(cases(2)) == len(SHAPES) * len(OPTIONS)
    run_ranks(compare_with_one_rank, 2)


# --- under DeepSpeed, with plain gradient descent, whose step is the clipped gradient ---


def sgd(model: Megabyte) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": model.parameters(), "is_muon": False}], lr=1.0)


def batches_of(config: RunConfig, group: int, groups: int) -> list[list[Batch]]:
    """The micro batches of every step of a group of ranks."""
    plan = training_plan(config)
    accumulation = config.train.global_batch // config.train.micro_batch // groups
    rows = TrainingRows(plan, (0, 0), config.train.micro_batch, accumulation, group, groups)
    batches = iter(make_loader(plan, rows, 0))
    return [list(islice(batches, accumulation)) for _ in range(config.train.steps)]


def descend_alone(config: RunConfig) -> tuple[list[float], list[float], list[Tensor]]:
    """Losses, norms and final weights with torch alone in one process."""
    torch.manual_seed(config.train.seed)
    model = Megabyte(config.model)
    optimizer = sgd(model)
    losses, norms = [], []
    for step, micro_batches in enumerate(batches_of(config, 0, 1)):
        scored = sum(int(batch.scored.sum()) for batch in micro_batches)
        total = torch.tensor(0.0)
        for batch in micro_batches:
            nats = model(batch.ids.long(), batch.document, batch.modality)
            total = total + nats[batch.scored].sum() / scored
        total.backward()
        losses.append(total.item())
        clip = config.optimizer.max_grad_norm
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        engine_module.set_learning_rates(optimizer, step, config.train.steps, config.optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms, [p.detach() for p in model.parameters()]


def descend_together(rank: int, ranks: int, config_path: Path, folder: Path, stages: str) -> None:
    engine_module.make_optimizer = lambda model, *_: sgd(model)  # type: ignore[assignment]
    join_process_group(60.0)
    for stage in map(int, stages):
        config = load_config(config_path, [*OVERRIDES, f"train.deepspeed=zero{stage}"])
        torch.manual_seed(config.train.seed)
        engine = Engine(Megabyte(config.model), config)
        assert engine.data_parallel_size == ranks // 2
        statistics = [
            engine.train_step(step, config.train.steps, micro_batches)
            for step, micro_batches in enumerate(
                batches_of(config, engine.data_parallel_rank, engine.data_parallel_size)
            )
        ]
        weights = engine.state_dict()
        if rank == 0:
            result = [vars(s) for s in statistics], weights
            torch.save(result, folder / f"zero{stage}.pt")


@pytest.mark.parametrize(
    ("ranks", "stages"), [(2, "0123"), pytest.param(4, "13", marks=pytest.mark.long)]
)
def test_ranks_that_share_rows_descend_as_one_process(
    mixed_set: ShardSet, tmp_path: Path, ranks: int, stages: str
) -> None:
    """Every ZeRO stage, two micro batches a step, with gradients clipped in every step."""
    sizes = {"steps": 3, "global_batch": ranks, "micro_batch": 1, "sequence_parallel_size": 2}
    config_path = write_config(tmp_path / "run.yaml", mixed_set, MODEL, **sizes)
    config = load_config(config_path, OVERRIDES)
    losses, norms, weights = descend_alone(config)
    assert min(norms) > 0.1
    run_ranks(descend_together, ranks, config_path, tmp_path, stages)
    names = [name for name, _ in Megabyte(config.model).named_parameters()]
    for stage in stages:
        statistics, state = torch.load(tmp_path / f"zero{stage}.pt", weights_only=False)
        assert [s["nats"] / s["scored"] for s in statistics] == pytest.approx(losses, abs=1e-5)
        assert [s["grad_norm"] for s in statistics] == pytest.approx(norms, abs=1e-5)
        for name, expected in zip(names, weights, strict=True):
            torch.testing.assert_close(state[name], expected, rtol=0, atol=1e-5)


# --- the command ---


@pytest.mark.long
def test_a_run_with_shared_rows_resumes_without(mixed_set: ShardSet, tmp_path: Path) -> None:
    """A run with sequence parallelism resumes without it, and the other way round."""
    sizes = {"steps": 8, "global_batch": 2, "eval_every": 4}
    config = write_config(tmp_path / "run.yaml", mixed_set, MODEL, **sizes)
    alone: list[object] = ["--set", "train.deepspeed=zero2"]
    shared = [*alone, "--processes", 2, "--set", "train.sequence_parallel_size=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    for run, first, then in ((one, alone, shared), (two, shared, alone)):
        bytelm("train", config, "--out", run, *first)
        bytelm("train", config, "--out", run, "--resume", *then, "--set", "train.steps=12")
    for kind, steps, key in (
        ("train", 12, "loss"),
        ("train", 12, "grad_norm"),
        ("train", 12, "pad_ids"),
        ("train", 12, "bits_per_byte"),
        ("eval", 3, "total"),
    ):
        values, expected = ([line[key] for line in metrics(run, kind)] for run in (two, one))
        assert len(values) == steps
        for value, other in zip(values, expected, strict=True):
            assert value == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    ("processes", "overrides", "message"),
    [
        (4, ["train.sequence_parallel_size=4"], "4 does not divide stage 0's 2 heads"),
        (3, ["train.sequence_parallel_size=2"], "2 does not divide 3 processes"),
        (
            2,
            ["train.sequence_parallel_size=2", "model.context=8"],
            "does not divide a micro batch's 1 pa",
        ),
    ],
)
def test_rows_that_cannot_be_shared_are_refused(
    mixed_set: ShardSet, tmp_path: Path, processes: int, overrides: list[str], message: str
) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, MODEL, steps=1)
    run, options = tmp_path / "run", [part for o in overrides for part in ("--set", o)]
    finished = bytelm("train", config, "--out", run, "--processes", processes, *options, status=2)
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
