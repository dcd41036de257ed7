"""`train.compile`: compiled runs have the losses of eager ones, at every ZeRO stage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from helpers.commands import TINY_MODEL, bytelm, command, environment, metrics, write_config
from helpers.processes import kill_after_a_checkpoint
from torch._dynamo.utils import counters

from bytelm.model.megabyte import Megabyte
from bytelm.model.region import Region
from bytelm.pipelines.config import load_config
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training import compilation
from bytelm.pipelines.training.compilation import compile_model
from bytelm.pipelines.training.engine import Engine, join_process_group
from bytelm.pipelines.training.preflight import training_plan
from bytelm.pipelines.training.sharded_model import make_model

STEPS = 4
ZERO_3_KEEPS_NONE = {"stage": 3, "stage3_param_persistence_threshold": 0}
"""By default small parameters, all those of a tiny model, stay gathered."""
MEMORY = {"local_chunk": 5, "activation_checkpointing": True}


def train_at_every_stage(rank: int, ranks: int, port: int, path: Path, folder: Path) -> None:
    """Write the losses of an eager run and of compiled ones to a file of the rank."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    join_process_group(120.0)
    take_backend("aot_eager")
    losses = {}
    for name in ("eager", "zero0", "zero1", "zero2", str(folder / "zero3.json")):
        chosen = ["compile=off"] if name == "eager" else ["compile=on", f"deepspeed={name}"]
        config = load_config(path, [f"train.{value}" for value in chosen])
        plan = training_plan(config)
        batches = iter(make_loader(plan, TrainingRows(plan, (0, 0), 1, 1, rank, ranks), 0))
        torch.manual_seed(0)
        model = make_model(config)
        engine = Engine(model, config)
        compile_model(model, engine)
        losses[Path(name).stem] = [
            engine.train_step(step, STEPS, [next(batches)]).loss for step in range(STEPS)
        ]
        assert (counters["stats"]["unique_graphs"] > 0) == (name != "eager")
    (folder / f"losses-{rank}-{ranks}.json").write_text(json.dumps(losses))
    dist.barrier()
    dist.destroy_process_group()  # or its threads sometimes abort the process


def take_backend(backend: str) -> None:
    """Compile by a backend without kernels of its own, which takes a tenth of the time."""
    compile_region = Region.compile
    Region.compile = lambda region, _, *rest: compile_region(region, backend, *rest)
    compilation.compiler_problem = lambda device: ""


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
def test_every_zero_stage_has_the_eager_losses(
    mixed_set: ShardSet, tmp_path: Path, ranks: int
) -> None:
    """In chunks and checkpointed; ZeRO 3 gathers each block where it is called, and frees it."""
    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": ZERO_3_KEEPS_NONE}))
    sizes = {"steps": STEPS, "global_batch": ranks}
    config = write_config(tmp_path / "run.yaml", mixed_set, TINY_MODEL | MEMORY, **sizes)
    arguments = (ranks, free_port(), config, tmp_path)
    torch.multiprocessing.spawn(train_at_every_stage, arguments, ranks)
    for rank in range(ranks):
        losses = json.loads((tmp_path / f"losses-{rank}-{ranks}.json").read_text())
        expected = losses.pop("eager")
        assert len(losses) == 4
        for name, found in losses.items():
            assert found == pytest.approx(expected, abs=1e-5), name


def test_a_compiled_run_that_is_killed_resumes_to_the_last_digit(
    mixed_set: ShardSet, tmp_path: Path
) -> None:
    """With the compiler's kernels and dropout, whose noise is theirs."""
    model = {"stages": [{"width": 16, "layers": 1, "heads": 2}], "patch_sizes": [], "context": 64}
    sizes = {"steps": 8, "checkpoint_every": 4, "compile": "on"}
    config = write_config(tmp_path / "run.yaml", mixed_set, model | {"dropout": 0.1}, **sizes)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = bytelm("train", config, "--out", whole)
    assert "the first steps also compile the model" in result.stdout
    assert not result.stderr  # nor any line of the compiler

    train = command("train", config, "--out", broken)
    assert kill_after_a_checkpoint(train, environment(), broken) == "step-00000004"
    bytelm("train", config, "--out", broken, "--resume")
    assert [m["loss"] for m in metrics(broken)] == [m["loss"] for m in metrics(whole)]


def test_on_without_a_compiler_is_refused_on_one_line(
    mixed_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=2, compile="on")
    (line,) = bytelm("train", config, "--out", tmp_path / "run", status=2).stderr.splitlines()
    assert "No working C++ compiler" in line
    assert "set train.compile to auto or off" in line


@pytest.mark.parametrize(
    ("choice", "device", "problem", "is_compiled", "lines"),
    [
        ("auto", "cpu", "", False, []),
        ("off", "cuda", "", False, []),
        ("auto", "cuda", "", True, ["the first steps also compile the model"]),
        (
            *("auto", "cuda", "no triton", False),
            ["the model is not compiled, since PyTorch's compiler does not work: no triton"],
        ),
    ],
)
def test_auto_compiles_where_there_is_a_gpu_and_a_compiler(
    choice: str,
    device: str,
    problem: str,
    is_compiled: bool,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second rank has the problem, and both take the same way."""
    monkeypatch.setattr(compilation, "compiler_problem", lambda device: "")
    engine = SimpleNamespace(
        config=SimpleNamespace(train=SimpleNamespace(compile=choice)),
        device=torch.device(device),
        gather=lambda problems: [*problems, problem],
        zero_stage=1,
    )
    compiled: list[bool] = []
    model = SimpleNamespace(compile_regions=lambda: compiled.append(True))
    assert compile_model(cast(Megabyte, model), cast(Engine, engine)) == lines
    assert bool(compiled) == is_compiled
