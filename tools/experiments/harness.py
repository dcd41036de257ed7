"""Runs of an experiment: a model trained for a time or a number of FLOPs, and scored on `val`.

    WORK/runs/*.json   one file a finished run, with what was run and its result

A run whose file exists is not run again; a run that was stopped begins anew. All models read the
same rows in the same order, one row a step; seeds decide the initial weights and dropout.

    B rows, here 1    T ids in a row
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Generic, Literal, TypeVar

import torch
from rich.console import Console
from torch import nn

from bytelm.modalities.evaluation_head import UNITS_PER_BIT
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import OptimizerConfig
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.plan import Plan
from bytelm.pipelines.data.samplers import EvaluationRows, TrainingRows
from bytelm.pipelines.evaluation import PLAIN
from bytelm.pipelines.evaluation.document_scoring import score_in_order
from bytelm.pipelines.evaluation.finished_work import FinishedWork
from bytelm.pipelines.evaluation.passes import Scorer, batches_in_memory
from bytelm.pipelines.evaluation.scoring import Scores, bits_per_byte, nats_of_model
from bytelm.pipelines.runtime.device import autocast, this_device
from bytelm.pipelines.runtime.ranks import Ranks
from bytelm.pipelines.storage.files import write_atomic
from bytelm.tools.benchmarks.measure import Figure
from bytelm.tools.experiments.corpora import Corpora
from bytelm.tools.experiments.models import BytelmModel, ComparedModel, precision

S = TypeVar("S")

WARMUP = 0.05
"""Fraction of a training over which learning rates rise."""


@dataclass(frozen=True)
class Budget:
    """Length of a training, in seconds or in FLOPs."""

    amount: float
    unit: Literal["seconds", "FLOPs"] = "seconds"

    def times(self, factor: float) -> Budget:
        """The budget multiplied by a factor."""
        return replace(self, amount=factor * self.amount)

    def __str__(self) -> str:
        return f"{self.amount / 60:g} min" if self.unit == "seconds" else f"{self.amount:.3g} FLOPs"


@dataclass(frozen=True)
class Run(Generic[S]):
    """One training of a model and its scoring."""

    model: str
    settings: S
    """A dataclass that says what is built; `str` describes it in a few words."""
    budget: Budget
    seed: int = 0
    val_rows: int | None = None
    """Rows of each set's `val` that are scored; None scores all."""

    def __str__(self) -> str:
        return f"{self.model}{self.settings}, {self.budget}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """Scores of a run, and how it went."""

    nats: dict[str, float]
    """-Σ log p of the payload bytes of each set."""
    payload_bytes: dict[str, int]
    steps: int
    skipped: int
    """Steps that were dropped because their gradient was not finite."""
    parameters: int
    scoring_seconds: float

    def bits_per_byte(self, sets: Iterable[str]) -> float:
        """Bits per payload byte of the sets together."""
        names = list(sets)
        nats = sum(self.nats[name] for name in names)
        return bits_per_byte(nats, sum(self.payload_bytes[name] for name in names))


class RunCache(Generic[S]):
    """Results of finished runs in a folder; `result` runs what is missing."""

    def __init__(
        self,
        folder: Path,
        corpora: Corpora,
        build: Callable[[str, S, int], ComparedModel],
        console: Console,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            build: makes a model from its name, its settings and T.
            clock: seconds, by which a run with a budget of seconds lasts.
        """
        self.folder = folder
        self.corpora = corpora
        self.build = build
        self.console = console
        self.clock = clock

    def result(self, run: Run[S]) -> Result:
        """Result of a run, from its file if that exists, else by running it."""
        path = self._path(run)
        if path.exists():
            return Result(**json.loads(path.read_text("utf-8"))["result"])
        result = self._execute(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"run": asdict(run), "result": asdict(result)}
        write_atomic(path, json.dumps(content, indent=1).encode())
        self._report(run, result)
        return result

    def _path(self, run: Run[S]) -> Path:
        """File of a run, named by a hash of the run, its data and its precision."""
        key = json.dumps([asdict(run), self.corpora.train.hash, precision()], sort_keys=True)
        return self.folder / f"{run.model}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def _execute(self, run: Run[S]) -> Result:
        torch.manual_seed(run.seed)
        model = self.build(run.model, run.settings, self.corpora.config.row_length)
        steps, skipped = train(model, self.corpora.train, run.budget, self.clock)
        began = time.perf_counter()
        nats, payload_bytes = score_sets(model, self.corpora.val, run.val_rows)
        return Result(
            nats,
            payload_bytes,
            steps,
            skipped,
            parameters=sum(p.numel() for p in model.module.parameters()),
            scoring_seconds=time.perf_counter() - began,
        )

    def _report(self, run: Run[S], result: Result) -> None:
        """Print a line about a run that has just finished."""
        bits = "  ".join(
            f"{modality} {result.bits_per_byte(names):.3f}"
            for modality, names in self.corpora.by_modality.items()
        )
        skipped = f", {result.skipped} skipped" if result.skipped else ""
        self.console.print(
            f"{run}: {bits}  ({result.steps} steps{skipped}, scored in "
            f"{result.scoring_seconds:.0f} s)",
            highlight=False,
            soft_wrap=True,
        )


def learning_rate_factor(progress: float) -> float:
    """Factor of the learning rates at a fraction of the training: up linearly, then down to 0."""
    return min(progress / WARMUP, (1 - progress) / (1 - WARMUP))


def train(
    model: ComparedModel, plan: Plan, budget: Budget, clock: Callable[[], float]
) -> tuple[int, int]:
    """Train for a budget, one row a step; returns the number of steps and of skipped ones.

    Learning rates follow the fraction of the budget that is spent, so that their decay ends with it
    on any machine. The step that would end after the time is dropped; FLOPs are rounded to steps.
    """
    device = this_device()
    module, optimizer = model.module.train(), model.optimizer
    rows = TrainingRows(plan, (0, 0), 1, 1, 0, 1)
    workers = 0 if device.type == "cpu" else 1  # with a GPU, the processor is free for it
    batches = make_loader(plan, rows, workers, codec_patch=model.codec_patch)
    is_timed = budget.unit == "seconds"
    row_flops = 0.0 if is_timed else model.row_flops(plan.config.row_length)
    steps = skipped = 0
    began = clock()
    for batch in batches:
        with autocast(device, precision()):
            loss = model.loss(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), OptimizerConfig.max_grad_norm)
        spent = clock() - began if is_timed else (steps + 0.5) * row_flops
        progress = spent / budget.amount
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_factor(progress) * group["peak"]
        if norm.isfinite():
            optimizer.step()
        else:
            skipped += 1
        optimizer.zero_grad()
        steps += 1
    return steps, skipped


@torch.no_grad()
def score_sets(
    model: ComparedModel, plans: Mapping[str, Plan], max_rows: int | None
) -> tuple[dict[str, float], dict[str, int]]:
    """Nats and number of the payload bytes of each set, counted as `bytelm evaluate` does.

    Args:
        max_rows: number of rows from each set's beginning; None scores all.
    """
    model.module.eval()
    nats, payload_bytes = {}, {}
    for name, plan in plans.items():
        if max_rows is None and isinstance(model, BytelmModel) and model.config.output_mixing:
            scores = _mixed_scores(model.module, plan)
        else:
            count = plan.rows(0) if max_rows is None else min(max_rows, plan.rows(0))
            scores = _row_scores(model, plan, count)
        heads = scores.heads.values()
        units = sum(head.counted("payload_units") for head in heads)
        nats[name] = units / UNITS_PER_BIT * math.log(2)
        payload_bytes[name] = sum(head.counted("payload_bytes") for head in heads)
    return nats, payload_bytes


def _row_scores(model: ComparedModel, plan: Plan, count: int) -> Scores:
    """Scores of the first `count` rows of a plan."""
    scores = Scores(plan.config.patch)
    for batch in make_loader(plan, EvaluationRows(count, 1, 0, 1), workers=0):
        with autocast(this_device(), precision()):
            row_nats = model.nats(batch)
        scores.add_batch(batch, row_nats)
    return scores


def _mixed_scores(model: Megabyte, plan: Plan) -> Scores:
    """Scores of a plan's documents, over whose rows mixing goes on as in `bytelm evaluate`."""
    in_order = partial(score_in_order, model=model, precision=precision())
    nats_of = nats_of_model(model, precision())
    most, ranks = batches_in_memory(model.config, 1), Ranks()
    work = FinishedWork(None, (), ranks)
    scores, _ = Scorer(plan, nats_of, in_order, True, 1, most, PLAIN, ranks, work).score()
    return scores


def summarize(
    prefix: str,
    results: Mapping[str, Sequence[Result]],
    corpora: Corpora,
    references: Iterable[str],
) -> Iterator[Figure]:
    """Mean bits per byte over seeds: a figure for each modality (and set, if several) and model.

    Args:
        results: of each model, one for each seed.
        references: models whose best mean is the reference of every figure.
    """
    parts = dict(corpora.by_modality)
    for sets in corpora.by_modality.values():
        if len(sets) > 1:
            parts |= {name: [name] for name in sets}
    for part, sets in parts.items():
        bits = {
            model: [result.bits_per_byte(sets) for result in of_seeds]
            for model, of_seeds in results.items()
        }
        reference = min((fmean(bits[name]) for name in references if name in bits), default=None)
        for model, values in bits.items():
            spread = {"spread": standard_error(values)}
            name = f"{prefix}/{part}/{model}"
            yield Figure(name, fmean(values), "bits/byte", reference, spread)


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None for one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
