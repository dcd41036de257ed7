"""Training: rows from the plan, steps of the engine, metrics, evaluations, checkpoints."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from bytelm.model.flops import training_flops_per_byte
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints import run_folder
from bytelm.pipelines.checkpoints.train_state import MAX_SKIPPED_IN_A_ROW, TrainState
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.data.batch import Batch, Origin
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import EvaluationRows, TrainingRows
from bytelm.pipelines.errors import DivergedError
from bytelm.pipelines.evaluation.scoring import Scores, score
from bytelm.pipelines.runtime.device import product_flops
from bytelm.pipelines.runtime.launcher import end_with_launcher
from bytelm.pipelines.runtime.signals import SignalListener
from bytelm.pipelines.shards.reader import DamageError
from bytelm.pipelines.storage.files import write_atomic
from bytelm.pipelines.training import checkpointer
from bytelm.pipelines.training.engine import Engine, start_ranks
from bytelm.pipelines.training.metrics_logger import METRICS, RunLog
from bytelm.pipelines.training.preflight import (
    CONFIG,
    PLAN,
    ResumeOptions,
    check_resumable,
    plan_config,
    steps_to_do,
    training_plan,
)


def train(config: RunConfig, run: Path, start: ResumeOptions, requests: SignalListener) -> None:
    """Train a run to its last step, or until it is asked to stop; every rank calls it.

    Raises ValueError for what a user can get wrong, DamageError for data and checkpoints that
    cannot be used, CheckpointError for a checkpoint that cannot be written, DivergedError where
    loss or gradient stay not finite.
    """
    if run_folder.has_any(run) and not start.resume:
        raise ValueError(f"{run} has checkpoints: go on with --resume, or choose another --out")
    end_with_launcher()
    start_ranks(config.train.rank_timeout)
    torch.manual_seed(config.train.seed)
    engine = Engine(Megabyte(config.model), config)
    config = engine.config
    if engine.rank == 0:
        training_plan(config, run / PLAN)  # counts once what all ranks read
    engine.barrier()
    plan = training_plan(config, run / PLAN)
    state = TrainState(0, 0, 0, plan.identity, engine.ranks, engine.zero_stage)
    said: list[str] = []
    if start.resumes(run):
        found = checkpointer.newest_together(engine, run)
        state = found.state
        check_resumable(state, plan, start.new_plan)
        engine.load(found.folder, state.ranks, state.zero_stage)
        said = [*(f"refused {line}" for line in found.refused), f"resumed from {found.folder}"]
        if (state.ranks, state.zero_stage) != (engine.ranks, engine.zero_stage):
            said.append(
                f"it was written by {state.ranks} processes at ZeRO {state.zero_stage}, now it is "
                f"{engine.ranks} at ZeRO {engine.zero_stage}"
            )
        if engine.rank == 0:
            run_folder.set_refused_aside(run, found)
        state = replace(state, ranks=engine.ranks, zero_stage=engine.zero_stage)
        if state.plan != plan.identity:
            state = replace(state, epoch=0, row=0, plan=plan.identity)
    elif start.resume:
        said = [f"{run} has no checkpoint yet: starting at step 0"]
    peak_flops = product_flops(engine.device, config.train.precision)
    (peak_flops,) = engine.sum_over_ranks([peak_flops], torch.float64)
    step_flops = (
        training_flops_per_byte(config.model) * config.model.context * config.train.global_batch
    )
    if engine.rank == 0:
        write_atomic(run / CONFIG, json.dumps(config.to_dict(), indent=1).encode())
        steps = steps_to_do(config, plan)
        with RunLog(run, steps, state.step, step_flops, peak_flops) as log:
            for line in said:
                log.say(line)
            _loop(engine, plan, state, run, requests, log)
    else:
        _loop(engine, plan, state, run, requests, None)


def _loop(
    engine: Engine,
    plan: Plan,
    state: TrainState,
    run: Path,
    requests: SignalListener,
    log: RunLog | None,
) -> None:
    config = engine.config
    gc.freeze()  # modules, model and plan stay; the collector need not go through them each time
    rows = TrainingRows(
        plan,
        (state.epoch, state.row),
        config.train.micro_batch,
        engine.accumulation,
        engine.group,
        engine.groups,
    )
    mask = config.data.damage == "mask"
    codec_features = config.model.codec_features
    batches = iter(make_loader(plan, rows, config.data.workers, mask, codec_features))
    positions = plan.positions(state.epoch, state.row)
    validation = _validation_plans(config, log)
    steps = steps_to_do(config, plan)
    if log and steps < config.train.steps:
        log.say(f"the run ends after {steps} steps: a set is exhausted then")
    saved = state.step if run_folder.has_any(run) else None
    extra = DatasetInfo.of(plan).to_extra()

    def save(state: TrainState) -> None:
        nonlocal saved
        if saved == state.step:
            return
        folder = checkpointer.save(engine, run, state, config.model, extra)
        saved = state.step
        if log:
            log.checkpoint(state.step, folder)

    stop, _ = _asked(engine, requests)
    while state.step < steps and not stop:
        began = time.monotonic()
        batch = _next(batches, engine.accumulation)
        waited = time.monotonic() - began
        statistics = engine.train_step(state.step, steps, batch)
        epoch, row = list(islice(positions, config.train.global_batch))[-1]
        done = state.step + 1
        is_last = done == steps
        if log:
            if state.loss_monitor.is_spike(statistics.loss):
                log.spike(done, statistics.loss, state.loss_monitor)
            if not statistics.is_applied:
                log.skipped(done, statistics, _document_keys(plan, statistics.suspects))
        state = replace(
            state,
            step=done,
            epoch=epoch,
            row=row + 1,
            masked_bytes=state.masked_bytes + sum(d.size for d in statistics.damage),
            loss_monitor=state.loss_monitor.after(statistics.loss, statistics.is_applied),
        )
        if log:
            is_due = is_last or _is_due(done, config.train.log_every)
            log.step(done, statistics, (epoch, row), state.loss_monitor.skipped, waited, is_due)
        if state.loss_monitor.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            save(replace(state, loss_monitor=replace(state.loss_monitor, skipped_in_a_row=0)))
            raise DivergedError(
                f"loss or gradient of steps {done - MAX_SKIPPED_IN_A_ROW + 1} to {done} were not "
                f"finite; their updates were skipped, and the checkpoint of step {done} has the "
                "weights before them: lower optimizer.lr, or look at the documents named in "
                f"{run / METRICS}"
            )
        if statistics.damage:
            _check_damage(state.masked_bytes, done, statistics.damage[-1].cause, config, plan)
        stop, wants_checkpoint = _asked(engine, requests)
        if validation and not stop and (is_last or _is_due(done, config.train.eval_every)):
            metrics = _validate(engine, validation, requests)
            stop = metrics is None
            if log and metrics:
                log.evaluation(done, metrics)
        if wants_checkpoint or is_last or _is_due(done, config.train.checkpoint_every):
            save(state)
    if stop:
        save(state)
        if log:
            log.say(f"asked to stop: the run ends after step {state.step}, go on with --resume")


def _asked(engine: Engine, requests: SignalListener) -> tuple[bool, bool]:
    """Whether a signal asked any rank to stop, and to save now; the same on every rank."""
    stop, save = engine.sum_over_ranks([requests.stop, requests.take_save()], torch.int64)
    return stop > 0, save > 0


def _document_keys(plan: Plan, origins: Sequence[Origin]) -> list[str]:
    """`SET/SHARD: KEYS` of rows; documents of a shard that cannot be read are named by number."""
    lines = []
    sets = {source.set.location: source.set for source in plan.sources}
    for origin in origins:
        shard_set = sets[origin.set]
        shard = next(s for s in shard_set.split("train") if s.name == origin.shard)
        index = shard_set.index(shard)
        rows = [index[index["document"] == number][0] for number in origin.documents]
        try:
            keys = [shard_set.key(shard, row) for row in rows]
        except (OSError, ValueError):
            keys = [f"document-{number}" for number in origin.documents]
        lines.append(f"{origin.set}/{origin.shard}: {' '.join(keys)}")
    return lines


def _check_damage(masked: int, step: int, cause: str, config: RunConfig, plan: Plan) -> None:
    """DamageError, on every rank alike, where more is damaged than the config allows."""
    if masked > config.data.max_bad_share * plan.epoch_bytes:
        raise DamageError(
            f"{masked} bytes were damaged up to step {step}, more than max_bad_share "
            f"{config.data.max_bad_share} of an epoch's {plan.epoch_bytes}: {cause}"
        )


def _next(batches: Iterator[Batch], count: int) -> list[Batch]:
    """The next batches. RuntimeError where the data worker that made one has died; PyTorch says so
    in its own way, unless that happens while it takes a batch over."""
    try:
        return list(islice(batches, count))
    except (ConnectionError, EOFError) as error:
        raise RuntimeError(f"DataLoader worker died and its batch with it: {error}") from error


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _validation_plans(config: RunConfig, log: RunLog | None) -> list[Plan]:
    """A plan for each set that has documents to validate on."""
    plans = []
    for number, chosen in enumerate(config.data.sets):
        shard_set = config.open_set(number)
        if any(shard.documents for shard in shard_set.split("val")):
            plans.append(Plan([Source(shard_set, "val")], plan_config(config)))
        elif log:
            log.say(f"{chosen.path} has no documents in split 'val': it is not evaluated")
    return plans


def _validate(
    engine: Engine, plans: Sequence[Plan], requests: SignalListener
) -> dict[str, dict[str, float]] | None:
    """Scores on `val`; None where a signal asks any rank to stop meanwhile."""
    scores = Scores()
    for plan in plans:
        count = min(engine.config.train.eval_rows, plan.rows(0))
        rows = EvaluationRows(count, engine.config.train.micro_batch, engine.rank, engine.ranks)
        for batch in make_loader(plan, rows, 0):
            if any(engine.sum_over_ranks([requests.stop], torch.int64)):
                return None
            score(scores, engine.nats, [batch], plan.config.patch)
    scores.reduce(engine.sum_over_ranks)
    return scores.metrics()
