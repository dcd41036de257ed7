"""The measured time of a training step and of scoring a row, on a run's own rows and device.

A step is the trainer's without DeepSpeed: rows from the loader, forward, backward, clipping and the
optimizer.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.data_workers import WorkerBatches
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.runtime.device import autocast, resolve_precision, this_device
from bytelm.pipelines.training.optimizer import make_optimizer
from bytelm.pipelines.training.preflight import training_plan

UNCOUNTED_STEPS = 3
"""First steps, which allocate memory and are slow."""
LEAST_COUNTED_STEPS = 2


@dataclass(frozen=True)
class StepSpeed:
    """Seconds of one process."""

    step: float
    """A step of `global_batch` rows."""
    scored_row: float
    """The forward pass of one row."""


def measure(config: RunConfig, seconds: float) -> StepSpeed:
    """Take at least five steps, for about so many seconds.

    Raises torch.OutOfMemoryError if a GPU's memory does not suffice.
    """
    torch.manual_seed(config.train.seed)
    device = this_device()
    precision = resolve_precision(device, config.train.precision)
    model = Megabyte(config.model).to(device)
    optimizer = make_optimizer(model, config.optimizer, precision)

    def score(batch: Batch) -> torch.Tensor:
        with autocast(device, precision):
            nats: torch.Tensor = model(*batch.inputs(device))
        return nats[batch.scored.to(device)].mean()

    with closing(_batches(config)) as batches:

        def step() -> None:
            for batch in islice(batches, config.train.global_batch // config.train.micro_batch):
                score(batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            _wait_for(device)

        for _ in range(UNCOUNTED_STEPS):
            step()
        taken, begin = 0, time.monotonic()
        while taken < LEAST_COUNTED_STEPS or time.monotonic() - begin < seconds:
            step()
            taken += 1
        step_seconds = (time.monotonic() - begin) / taken
        batch = next(batches)
        with torch.no_grad():
            begin = time.monotonic()
            score(batch)
            _wait_for(device)
        return StepSpeed(step_seconds, (time.monotonic() - begin) / len(batch.ids))


def _batches(config: RunConfig) -> Generator[Batch]:
    """The micro batches of a run in one process, without end."""
    plan = training_plan(config)
    train = config.train
    accumulation = train.global_batch // train.micro_batch
    rows = TrainingRows(plan, (0, 0), train.micro_batch, accumulation, 0, 1)
    codec_patch = config.model.patch if config.model.codec_features else 0
    batches = make_loader(plan, rows, config.data.workers, codec_patch=codec_patch).batches()
    try:
        yield from batches
    finally:
        if isinstance(batches, WorkerBatches):
            batches.close()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
