"""Training: rows from the plan, steps of the engine, metrics, evaluations, checkpoints."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from bytelm.modalities import framing
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines import checkpoint
from bytelm.pipelines.checkpoint import TrainState
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.engine import Engine, bits_per_byte, deepspeed_config, start_ranks
from bytelm.pipelines.evaluate import Scores, score
from bytelm.pipelines.loader import EvaluationRows, TrainingRows, make_loader
from bytelm.pipelines.plan import Plan, PlanConfig, Source
from bytelm.pipelines.runlog import RunLog
from bytelm.pipelines.shards import ShardSet, write_atomic

CONFIG = "config.json"


class DivergedError(RuntimeError):
    """A loss that is not finite."""


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `bytelm ARGUMENTS` in so many processes of this machine; gives the exit status."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "bytelm.pipelines.cli", *arguments]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    return 1 if subprocess.run(command, env=environment, check=False).returncode else 0


def training_plan(config: RunConfig) -> Plan:
    """The plan of a run's `train` splits."""
    sources = [Source(ShardSet(s.path), "train", s.weight) for s in config.data.sets]
    return Plan(sources, plan_config(config))


def plan_config(config: RunConfig) -> PlanConfig:
    """The part of a run's config that decides the rows."""
    return PlanConfig(
        row_length=config.model.context,
        patch=config.model.patch,
        views=vars(config.data.views),
        seed=config.train.seed,
        packing=config.data.packing,
        pair_order=config.data.pair_order,
        window_shards=config.data.window_shards,
    )


def check(config: RunConfig, run: Path, processes: int, resume: bool) -> None:
    """ValueError for what would stop a run before its first step, found before any rank starts."""
    deepspeed_config(config.train.deepspeed)
    config.accumulation(processes)
    if config.model.vocab_size != framing.VOCAB_SIZE or config.model.pad_id != framing.PAD:
        raise ValueError(
            f"the stream has {framing.VOCAB_SIZE} ids and pads with {framing.PAD}: leave "
            "vocab_size and pad_id of the model as they are"
        )
    plan = training_plan(config)
    if resume:
        _check_resumable(checkpoint.newest(run)[1], config, plan, processes)
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"{run} is not empty: go on with --resume, or choose another --out")


def _check_resumable(state: TrainState, config: RunConfig, plan: Plan, ranks: int) -> None:
    stage = deepspeed_config(config.train.deepspeed)["zero_optimization"]["stage"]
    for name, was, is_ in (
        ("plan of the data (sets, views, weights, context, patch or seed)", state.plan, plan.hash),
        ("number of processes", state.ranks, ranks),
        ("ZeRO stage", state.zero_stage, stage),
    ):
        if was != is_:
            raise ValueError(
                f"the checkpoint was written with another {name}: {was}, now {is_}; "
                "resume with the config and the processes that it was started with"
            )


def train(config: RunConfig, run: Path, resume: bool) -> None:
    """Train a run to its last step; every rank calls it.

    Raises ValueError for what a user can get wrong, DivergedError for a loss that is not finite.
    """
    start_ranks()
    torch.manual_seed(config.train.seed)
    engine = Engine(Megabyte(config.model), config)
    plan = training_plan(config)
    state = TrainState(0, 0, 0, plan.hash, engine.ranks, engine.zero_stage)
    if resume:
        folder, state = checkpoint.newest(run)
        _check_resumable(state, config, plan, engine.ranks)
        engine.load(folder)
    if engine.rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        write_atomic(run / CONFIG, json.dumps(config.to_dict(), indent=1).encode())
        with RunLog(run, config.train.steps, state.step) as log:
            _loop(engine, plan, state, run, log)
    else:
        _loop(engine, plan, state, run, None)


def _loop(engine: Engine, plan: Plan, state: TrainState, run: Path, log: RunLog | None) -> None:
    config = engine.config
    rows = TrainingRows(
        plan,
        (state.epoch, state.row),
        config.train.micro_batch,
        engine.accumulation,
        engine.rank,
        engine.ranks,
    )
    batches = iter(make_loader(plan, rows, config.data.workers))
    positions = plan.positions(state.epoch, state.row)
    validation = _validation_plans(config, log)
    began, logged_bytes = time.monotonic(), 0
    for step in range(state.step, config.train.steps):
        done = step + 1
        last = done == config.train.steps
        statistics = engine.train_step(step, list(islice(batches, engine.accumulation)))
        epoch, row = list(islice(positions, config.train.global_batch))[-1]
        if not math.isfinite(statistics.loss):
            raise DivergedError(f"the loss of step {done} is {statistics.loss}")
        logged_bytes += sum(statistics.payload_bytes.values())
        if log and (last or _is_due(done, config.train.log_every)):
            seconds, began = time.monotonic() - began, time.monotonic()
            log.step(
                done,
                {
                    "loss": statistics.loss,
                    "bits_per_byte": {
                        name: bits_per_byte(nats, statistics.payload_bytes[name])
                        for name, nats in statistics.payload_nats.items()
                        if statistics.payload_bytes[name]
                    },
                    "lr": statistics.lr,
                    "grad_norm": statistics.grad_norm,
                    "bytes_per_second": logged_bytes / seconds,
                    "epoch": epoch,
                    "row": row,
                },
            )
            logged_bytes = 0
        if validation and (last or _is_due(done, config.train.eval_every)):
            metrics = _validate(engine, validation)
            if log:
                log.evaluation(done, metrics)
            began, logged_bytes = time.monotonic(), 0
        if last or _is_due(done, config.train.checkpoint_every):
            reached = TrainState(done, epoch, row + 1, plan.hash, engine.ranks, engine.zero_stage)
            folder = checkpoint.save(engine, run, reached, config.model, _exported(config))
            if log:
                log.say(f"step {done}: checkpoint {folder}")
            began, logged_bytes = time.monotonic(), 0


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _exported(config: RunConfig) -> dict[str, object]:
    """What an exported model's config says beside its shape."""
    return {"views": vars(config.data.views)}


def _validation_plans(config: RunConfig, log: RunLog | None) -> list[Plan]:
    """A plan for each set that has documents to validate on."""
    plans = []
    for chosen in config.data.sets:
        shard_set = ShardSet(chosen.path)
        if any(shard.documents for shard in shard_set.split("val")):
            plans.append(Plan([Source(shard_set, "val")], plan_config(config)))
        elif log:
            log.say(f"{chosen.path} has no documents in split 'val': it is not evaluated")
    return plans


def _validate(engine: Engine, plans: Sequence[Plan]) -> dict[str, dict[str, float]]:
    scores = Scores()
    for plan in plans:
        count = min(engine.config.train.eval_rows, plan.rows(0))
        rows = EvaluationRows(count, engine.config.train.micro_batch, engine.rank, engine.ranks)
        score(scores, engine.nats, make_loader(plan, rows, 0), plan.config.patch)
    scores.reduce(engine.sum_over_ranks)
    return scores.metrics()
