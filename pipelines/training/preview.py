"""`bytelm plan`: what a config will do, from its indexes alone, before anything runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bytelm.model.flops import costs, generation_flops_per_byte, training_flops_per_byte
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.data.plan import Plan
from bytelm.pipelines.runtime.device import chosen_precision, product_flops
from bytelm.pipelines.training.deepspeed_config import deepspeed_config
from bytelm.pipelines.training.memory import checkpoint_bytes, memory
from bytelm.pipelines.training.preflight import check_cache, steps_to_do, training_plan

REACHED = 0.4
"""Share of a product's FLOP/s that training reaches, about."""


def preview(config: RunConfig, processes: int, console: Console) -> None:
    """Show sets, shares, rows, padding, epochs and steps of a run.

    Raises ValueError for what would stop the run before its first step.
    """
    accumulation = config.accumulation(processes)
    with tempfile.TemporaryDirectory() as folder:
        plan = training_plan(config, Path(folder) / "plan.npz")
    steps = steps_to_do(config, plan)
    check_cache(config, plan, processes)
    console.print(_sets(config, plan))
    rows = plan.rows(0)
    held = plan.epoch_bytes / (rows * config.model.context)
    parameters = [cost.parameters for cost in costs(config.model)]
    parts = " + ".join(f"{count:,}" for count in parameters)
    for line in (
        f"model: {sum(parameters):,} parameters ({parts} by stage and output), "
        f"context {config.model.context:,}, patch {config.model.patch}",
        f"cost: {training_flops_per_byte(config.model):,.0f} FLOPs a byte to train, "
        f"{generation_flops_per_byte(config.model):,.0f} to generate",
        f"epoch: {rows:,} rows, {plan.epoch_bytes:,} payload bytes, "
        f"{1 - held:.1%} framing and padding",
        f"step: {config.train.global_batch} rows on {processes} processes, "
        f"{accumulation} micro batches of {config.train.micro_batch} on each",
        f"run: {steps:,} steps, {steps * config.train.global_batch:,} rows, "
        f"{steps * config.train.global_batch / rows:.2f} epochs",
        f"time: about {_hours(config, steps)} on this machine's processor",
        f"checkpoint: {checkpoint_bytes(config) / 1e9:.2f} GB",
        f"plan {plan.hash[:16]}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_memory(config, processes))
    if steps < config.train.steps:
        console.print(f"a set is exhausted before the {config.train.steps:,} steps of the config")


def _hours(config: RunConfig, steps: int) -> str:
    """From the FLOPs of the run and the speed of a product, of which training reaches a part."""
    ids = steps * config.train.global_batch * config.model.context
    flops = ids * training_flops_per_byte(config.model)
    processor = torch.device("cpu")
    precision = chosen_precision(processor, config.train.precision)
    hours = flops / (REACHED * product_flops(processor, precision)) / 3600
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.0f} minutes"


def _memory(config: RunConfig, processes: int) -> Table:
    """By ZeRO stage, with the run's own marked."""
    own = deepspeed_config(config.train.deepspeed)["zero_optimization"]["stage"]
    table = Table(box=SIMPLE)
    table.add_column("GB of a process")
    for column in ("weights, gradients, optimizer", "activations", "with the program"):
        table.add_column(column, justify="right")
    for stage, of_stage in enumerate(memory(config, processes)):
        table.add_row(
            f"ZeRO {stage}{' (this run)' if stage == own else ''}",
            *(f"{n / 1e9:.2f}" for n in (of_stage.states, of_stage.activations, of_stage.total)),
        )
    return table


def _sets(config: RunConfig, plan: Plan) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("set", overflow="fold")  # long ones on several lines, none cut
    for column in ("documents", "payload bytes", "share", "rows an epoch", "passes an epoch"):
        table.add_column(column, justify="right")
    for source, rows, share, passes, size in zip(
        plan.sources,
        plan.source_rows(0),
        plan.shares,
        plan.passes,
        plan.source_bytes,
        strict=True,
    ):
        documents = sum(shard.documents for shard in source.set.split(source.split))
        table.add_row(
            Text(source.set.location),
            f"{documents:,}",
            f"{size:,}",
            f"{share:.1%}",
            f"{rows:,}",
            f"{passes:.2f}",
        )
    return table
