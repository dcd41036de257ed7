"""The trainer of a run: it reads rows, takes steps, evaluates, saves, and stops on a signal.

    Trainer.run -> Engine.train_step -> Megabyte.forward

Every rank runs the same code. The values that decide the next action (signals, damage, loss) are
summed over ranks first, so that all of them take the same branch.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from bytelm.model.flops import training_flops_per_byte
from bytelm.pipelines.checkpoints import run_folder
from bytelm.pipelines.checkpoints.train_state import MAX_SKIPPED_IN_A_ROW, TrainState
from bytelm.pipelines.config import RunConfig, plural
from bytelm.pipelines.data.batch import Batch, Damage, Origin
from bytelm.pipelines.data.data_workers import StopWaitingError
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.plan import Plan, Source, open_plan
from bytelm.pipelines.data.samplers import EvaluationRows, TrainingRows
from bytelm.pipelines.errors import DamageError, DivergedError
from bytelm.pipelines.evaluation.scoring import Scores
from bytelm.pipelines.runtime.device import measured_matmul_flops
from bytelm.pipelines.runtime.launcher import (
    LAUNCHER_LOCK,
    exit_with_launcher,
    patience,
    restarts,
    saving,
    tell_launcher_started,
)
from bytelm.pipelines.runtime.signals import SignalListener
from bytelm.pipelines.storage.files import write_atomic
from bytelm.pipelines.training.compilation import compile_model
from bytelm.pipelines.training.config_changes import change_lines, check_same_model
from bytelm.pipelines.training.engine import Engine, join_process_group
from bytelm.pipelines.training.initial_weights import copy_weights, load_initial_model
from bytelm.pipelines.training.metrics_logger import METRICS, MetricsLogger
from bytelm.pipelines.training.pace import Pace, TimeBudget, with_steps, write_steps
from bytelm.pipelines.training.preflight import (
    ResumeOptions,
    check_same_data,
    plan_config,
    total_steps,
    training_sources,
    validation_sources,
)
from bytelm.pipelines.training.run_saves import RunSaves
from bytelm.pipelines.training.samples import SampleDrawer, remove_samples_after
from bytelm.pipelines.training.sessions import recorded_session
from bytelm.pipelines.training.sharded_model import make_model
from bytelm.pipelines.training.step_statistics import StepStatistics


class Trainer:
    """A run on one rank: its engine, data, state and log."""

    def __init__(self, engine: Engine, plan: Plan, run: Path):
        """Begin at step 0; `start` makes a trainer and resumes."""
        self.engine = engine
        self.config = engine.config
        self.plan = plan
        self.folder = run
        self.steps = total_steps(self.config, plan)
        self.state = TrainState(0, 0, 0, plan.identity, engine.ranks, engine.zero_stage)
        dataset_info = DatasetInfo.of(plan)
        self.saves = RunSaves(engine, run, dataset_info.to_extra())
        sets = [source.set for source in plan.sources]
        self.sample_drawer = SampleDrawer(engine, run, sets, dataset_info)
        self.validation_plans: list[Plan] = []
        self.start_messages: list[str] = []
        """Lines for the log, which opens in `run`."""
        self.log: MetricsLogger | None = None
        """Only rank 0 has one."""
        self.pace: Pace | None = None
        """Corrects the number of steps, if the run has a limited time."""

    @classmethod
    def start(
        cls, config: RunConfig, run: Path, options: ResumeOptions, budget: TimeBudget | None = None
    ) -> Trainer:
        """Join the other ranks, make the engine and the plan, and resume if the options ask for it.

        Every rank calls it.

        Args:
            budget: of a run of limited time, whose steps are corrected after the warm-up.
        Raises:
            ValueError: for a user's mistake.
            DamageError: if no checkpoint can be used.
        """
        exit_with_launcher()
        join_process_group(config.train.rank_timeout)
        torch.manual_seed(config.train.seed)
        model = make_model(config)
        if not run_folder.has_checkpoint(run) and (initial := load_initial_model(config)):
            copy_weights(initial, model, config.train.deepspeed)
        engine = Engine(model, config)
        options = _options_after_restart(engine, options)
        if run_folder.has_checkpoint(run) and not options.resume:
            raise ValueError(
                f"{run} has checkpoints: continue with --resume, or choose another --out"
            )
        messages = compile_model(model, engine)
        trainer = cls(engine, _plan_for_all_ranks(engine, training_sources(config)), run)
        trainer._resume(options)
        trainer._plan_validation()
        trainer.start_messages += messages
        if budget:
            trainer.pace = Pace(budget, config.optimizer.warmup_steps)
        return trainer

    def run(self) -> bool:
        """Step, evaluate and save until the last step or until a signal asks to stop.

        Returns:
            Whether all steps are done.
        Raises:
            CheckpointError: if a checkpoint cannot be written.
            DamageError: if more bytes were masked than the config allows.
            DivergedError: after MAX_SKIPPED_IN_A_ROW steps whose update was skipped.
        """
        # Up to here SIGTERM and SIGINT end the process at once: there is no step to save.
        self.signals = SignalListener(is_launched=LAUNCHER_LOCK in os.environ)
        self.signals.set_patience(patience(self.engine.ranks))
        tell_launcher_started()
        with closing(self.saves), self._open_log() as self.log, self._recorded_session():
            self.saves.log = self.log
            self._open_data()
            if self._are_samples_due() and self.sample_drawer.is_missing(self.state.step):
                self.draw_samples()  # the run was asked to stop before they were drawn
            stop = False
            while self.state.step < self.steps:
                micro_batches, data_wait = self._next_micro_batches()
                stop, save, writing = self._requests_on_any_rank()
                self.saves.advance(writing)
                if save:
                    self.save()
                if stop:
                    break
                statistics = self.engine.train_step(self.state.step, self.steps, micro_batches)
                self._record(statistics, data_wait)
                if self.pace and self.pace.is_due_after(self.state.step):
                    self._correct_steps(self.pace)
                if self._is_due(self.config.train.eval_every):
                    self.evaluate()
                if self._is_due(self.config.train.checkpoint_every):
                    self.save()
                if self._are_samples_due():
                    self.draw_samples()
            if stop:
                self.save()
            self._finish_saves()
            self._finish_uploads()
            if stop:
                self._print(
                    f"asked to stop: the run ends after step {self.state.step}, continue with "
                    "--resume"
                )
            else:
                self._print(f"next: bytelm report {shlex.quote(str(self.folder))}")
        return not stop

    def evaluate(self) -> None:
        """Score the `val` splits, if any, and log the result, unless a signal interrupts it."""
        if not self.validation_plans:
            return
        scores = Scores(self.config.model.patch)
        for plan in self.validation_plans:
            rows = EvaluationRows(
                min(self.config.train.eval_rows, plan.rows(0)),
                self.config.train.micro_batch,
                self.engine.rank,
                self.engine.ranks,
            )
            for batch in make_loader(plan, rows, workers=0):
                if any(self.engine.sum_over_ranks([self.signals.stop_requested], torch.int64)):
                    return
                scores.add_batch(batch, self.engine.nats(batch))
        scores.reduce(self.engine.sum_over_ranks)
        if self.log:
            self.log.evaluation(self.state.step, scores.figures())

    def draw_samples(self) -> None:
        """Draw samples with the present weights, unless a signal interrupts it."""
        seconds = self.pace.budget.seconds_left() if self.pace else math.inf
        drawn = self.sample_drawer.draw(
            self.state.step, lambda: self.signals.stop_requested, seconds
        )
        if self.log and drawn:
            self.log.samples(self.state.step, drawn)

    def save(self) -> None:
        """Begin to write a checkpoint of the present step, unless there is one."""
        with self.signals.finishing(), saving():
            self.saves.begin(self.state)

    def _finish_uploads(self) -> None:
        """Wait for the last upload: at its regular end a run does so until it is asked to stop."""
        was_asked = self.signals.stop_requested
        with self.signals.finishing(), saving():
            self.saves.finish_uploads(lambda: self.signals.stop_requested and not was_asked)

    def _finish_saves(self) -> None:
        """Wait until the checkpoint that is being written, if any, is whole."""
        with self.signals.finishing(), saving():
            self.saves.finish()

    # --- start ---

    def _resume(self, options: ResumeOptions) -> None:
        """Load the newest usable checkpoint, if the options ask for one."""
        if not options.resume:
            return
        if not options.resumes(self.folder):
            self.start_messages = [f"{self.folder} has no checkpoint yet: starting at step 0"]
            return
        engine, plan = self.engine, self.plan
        check_same_model(self.folder, self.config)
        checkpoint = self.saves.checkpointer.newest_usable()
        saved = checkpoint.state
        check_same_data(saved, plan, options.new_plan)
        engine.load(checkpoint.folder, saved.ranks, saved.zero_stage)
        if engine.rank == 0:
            run_folder.rename_refused(self.folder, checkpoint)
        self.state = replace(saved, ranks=engine.ranks, zero_stage=engine.zero_stage)
        if saved.plan != plan.identity:
            self.state = replace(self.state, epoch=0, row=0, plan=plan.identity)
        self.saves.resumed(checkpoint)
        self.start_messages = [f"refused {line}" for line in checkpoint.refused]
        self.start_messages.append(f"resumed from {checkpoint.folder}")
        if (saved.ranks, saved.zero_stage) != (engine.ranks, engine.zero_stage):
            self.start_messages.append(
                f"it was written by {plural(saved.ranks, 'process', 'processes')} at ZeRO "
                f"{saved.zero_stage}, now it is {engine.ranks} at ZeRO {engine.zero_stage}"
            )
        if saved.step >= self.steps:
            self.start_messages.append(
                f"the run is at step {saved.step} and ends at {self.steps}: there is nothing to do "
                "unless train.steps is raised"
            )
        else:
            self.start_messages += change_lines(self.folder, self.config, saved.step)

    def _plan_validation(self) -> None:
        """Make a plan of the `val` split of each set that has one."""
        sources = validation_sources(self.config)
        self.validation_plans = [_plan_for_all_ranks(self.engine, [one]) for one in sources]
        planned = {source.set.location for source in sources}
        self.start_messages += [
            f"{chosen.path} has no documents in split 'val': it is not evaluated"
            for chosen in self.config.data.sets
            if chosen.path not in planned
        ]

    def _open_log(self) -> AbstractContextManager[MetricsLogger | None]:
        """The log of the run from its present step on, on rank 0, which also writes the config."""
        peak_flops = _peak_flops(self.engine)
        if self.engine.rank != 0:
            return nullcontext()
        remove_samples_after(self.folder, self.state.step)
        if self.state.step < self.steps:
            self._write_config()
        model = self.config.model
        step_flops = training_flops_per_byte(model) * model.context * self.config.train.global_batch
        step_seconds = step_flops / peak_flops
        return MetricsLogger(self.folder, self.config, self.steps, self.state.step, step_seconds)

    def _recorded_session(self) -> AbstractContextManager[None]:
        """The record of this session in the run's folder, which rank 0 keeps if there are steps."""
        if self.engine.rank != 0 or self.state.step >= self.steps:
            return nullcontext()
        return recorded_session(
            self.folder,
            lambda: self.state.step,
            ranks=self.engine.ranks,
            zero_stage=self.engine.zero_stage,
            precision=self.config.train.precision,
        )

    def _open_data(self) -> None:
        """Start the training loader, and log how the run starts."""
        for message in self.start_messages:
            self._print(message)
        gc.freeze()  # modules, model and plan stay: the collector need not visit them each time
        self._open_training_data()
        if self.steps < self.config.train.steps:
            self._print(f"the run ends after {plural(self.steps, 'step')}: a set is exhausted then")

    # --- data ---

    def _open_training_data(self) -> None:
        start = self.state.epoch, self.state.row
        rows = TrainingRows(
            self.plan,
            start,
            self.config.train.micro_batch,
            self.engine.accumulation,
            self.engine.data_parallel_rank,
            self.engine.data_parallel_size,
        )
        shares = vars(self.config.train.noise)
        loader = make_loader(
            self.plan,
            rows,
            self.config.data.workers,
            mask_damage=self.config.data.damage == "mask",
            codec_patch=self.config.model.patch if self.config.model.codec_features else 0,
            noise=shares if any(shares.values()) else None,
        )
        self._batches = loader.batches(
            self.config.train.rank_timeout, lambda: self.signals.stop_requested
        )
        self._positions = self.plan.positions(*start)

    def _next_micro_batches(self) -> tuple[list[Batch], float]:
        """This rank's part of the next global batch, and the seconds that it was waited for.

        None come if this rank is asked to stop while it waits.

        Raises:
            RuntimeError: if a data worker has died, or does not deliver within `rank_timeout`.
        """
        start = time.monotonic()
        try:
            micro_batches = list(islice(self._batches, self.engine.accumulation))
        except StopWaitingError as error:
            print(f"bytelm train: {error}", file=sys.stderr)
            micro_batches = []
        return micro_batches, time.monotonic() - start

    # --- state ---

    def _record(self, statistics: StepStatistics, data_wait: float) -> None:
        """Count a step that the engine has taken, and log it.

        Raises DamageError and DivergedError as `run` does.
        """
        self._log_anomalies(statistics)
        self._advance(statistics)
        if self.log:
            is_due = self._is_due(self.config.train.log_every)
            self.log.step(self.state, statistics, data_wait, is_due)
        self._stop_if_diverged()
        self._stop_if_damaged(statistics.damage)

    def _advance(self, statistics: StepStatistics) -> None:
        epoch, row = list(islice(self._positions, self.config.train.global_batch))[-1]
        masked_bytes = sum(piece.size for piece in statistics.damage)
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            epoch=epoch,
            row=row + 1,
            masked_bytes=self.state.masked_bytes + masked_bytes,
            loss_monitor=self.state.loss_monitor.after(statistics.loss, statistics.is_applied),
        )

    def _correct_steps(self, pace: Pace) -> None:
        """Take as many steps as fit at the speed of the warm-up on rank 0."""
        planned = self.steps
        steps = pace.corrected(self.config).train.steps if self.engine.rank == 0 else 0
        (steps,) = self.engine.sum_over_ranks([steps], torch.int64)
        self.config = with_steps(self.config, steps)
        self.steps = total_steps(self.config, self.plan)
        if self.log:
            self.log.set_steps(self.steps, self.state.step)
            self._write_config()
            write_steps(self.folder, self.config, planned)

    def _write_config(self) -> None:
        config = json.dumps(self.config.to_dict(), indent=1)
        write_atomic(self.folder / run_folder.CONFIG_FILE, config.encode())

    def _is_due(self, every: int) -> bool:
        """Whether the present step is the last one, or a multiple of `every`; 0 is never."""
        step = self.state.step
        return step == self.steps or (every > 0 and step % every == 0)

    def _are_samples_due(self) -> bool:
        """Whether the present step is one that draws samples."""
        every = self.config.train.sample_every
        return every > 0 and self.state.step > 0 and self._is_due(every)

    def _requests_on_any_rank(self) -> tuple[bool, bool, int]:
        """Whether a signal asked any rank to stop, and to save now; how many ranks are writing."""
        requests = [self.signals.stop_requested, self.signals.take_save_request()]
        stop, save, writing = self.engine.sum_over_ranks(
            [*requests, self.saves.is_busy], torch.int64
        )
        return stop > 0, save > 0, writing

    def _stop_if_diverged(self) -> None:
        state, monitor = self.state, self.state.loss_monitor
        if monitor.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
            return
        self.state = replace(state, loss_monitor=replace(monitor, skipped_in_a_row=0))
        self.save()
        self._finish_saves()
        raise DivergedError(
            f"loss or gradient of steps {state.step - MAX_SKIPPED_IN_A_ROW + 1} to {state.step} "
            f"were not finite; their updates were skipped, and the checkpoint of step {state.step} "
            "has the weights before them: lower optimizer.lr, or look at the documents named in "
            f"{self.folder / METRICS}"
        )

    def _stop_if_damaged(self, damage: Sequence[Damage]) -> None:
        masked, limit = self.state.masked_bytes, self.config.data.max_bad_share
        if damage and masked > limit * self.plan.epoch_bytes:
            self._finish_saves()
            raise DamageError(
                f"{masked} bytes were damaged up to step {self.state.step}, more than "
                f"max_bad_share {limit} of an epoch's {self.plan.epoch_bytes}: {damage[-1].cause}"
            )

    # --- log ---

    def _print(self, message: str) -> None:
        if self.log:
            self.log.print(message)

    def _log_anomalies(self, statistics: StepStatistics) -> None:
        """Log a spike or a skipped update of the step that is about to be counted."""
        if not self.log:
            return
        step, monitor = self.state.step + 1, self.state.loss_monitor
        if monitor.is_spike(statistics.loss):
            self.log.spike(step, statistics.loss, monitor)
        if not statistics.is_applied:
            self.log.skipped(step, statistics, _document_keys(self.plan, statistics.suspects))


def _options_after_restart(engine: Engine, options: ResumeOptions) -> ResumeOptions:
    """The options; to resume, without being told, where torchrun started any rank again."""
    if sum(engine.sum_over_ranks([restarts()], torch.int64)) == 0:
        return options
    return replace(options, resume=True, allow_fresh_start=True)


def _plan_for_all_ranks(engine: Engine, sources: Sequence[Source]) -> Plan:
    """The plan of some sources, by the counts that rank 0 finds or makes: other nodes may have no
    access to them."""
    config, folder = plan_config(engine.config), engine.config.data.cache_folder
    tables = open_plan(sources, config, folder).tables if engine.rank == 0 else []
    return Plan(sources, config, engine.from_rank_0(tables))


def _peak_flops(engine: Engine) -> float:
    """FLOP/s that the devices of all ranks reach together."""
    peak_flops = measured_matmul_flops(engine.device, engine.config.train.precision)
    (summed,) = engine.sum_over_ranks([peak_flops], torch.float64)
    return summed


def _document_keys(plan: Plan, origins: Sequence[Origin]) -> list[str]:
    """`SET/SHARD: KEYS` of each row; documents of a shard that cannot be read are numbered."""
    lines = []
    sets = {source.set.location: source.set for source in plan.sources}
    for origin in origins:
        shard_set = sets[origin.set]
        shard = next(s for s in shard_set.split("train") if s.name == origin.shard)
        index = shard_set.index(shard)
        samples = [index[index["document"] == number][0] for number in origin.documents]
        try:
            keys = [shard_set.key(shard, sample) for sample in samples]
        except (OSError, ValueError):
            keys = [f"document-{number}" for number in origin.documents]
        lines.append(f"{origin.set}/{origin.shard}: {' '.join(keys)}")
    return lines
