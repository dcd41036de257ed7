"""`bytelm plan`: what a config will do, computed from the sets' indexes before anything runs."""

from __future__ import annotations

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bytelm.model.flops import costs, generation_flops_per_byte, training_flops_per_byte
from bytelm.pipelines.config import RunConfig, plural
from bytelm.pipelines.data.plan import Plan
from bytelm.pipelines.runtime.device import measured_matmul_flops, resolve_precision
from bytelm.pipelines.runtime.tables import print_table
from bytelm.pipelines.shards.set_summary import size_text
from bytelm.pipelines.training.deepspeed_config import has_offload, zero_stage
from bytelm.pipelines.training.memory import checkpoint_bytes, memory_by_zero_stage
from bytelm.pipelines.training.preflight import check_cache, total_steps, training_plan

REACHED_SHARE = 0.4
"""Typical share of a matrix product's FLOP/s that training reaches."""


def preview(config: RunConfig, ranks: int, console: Console) -> None:
    """Print sets, shares, rows, padding, steps, time and memory of a run.

    Raises:
        ValueError: for a mistake that would stop the run before its first step.
    """
    accumulation = config.accumulation(ranks)
    plan = training_plan(config)
    steps = total_steps(config, plan)
    check_cache(config, plan, ranks)
    print_table(console, _set_table(config, plan))
    for line in (
        *_model_lines(config),
        *_run_lines(config, plan, steps, ranks, accumulation),
        f"time: about {_duration(config, steps)} on this machine's processor",
        f"checkpoint: {size_text(round(checkpoint_bytes(config)))}",
        _activation_line(config, ranks),
        f"plan {plan.hash[:16]}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    print_table(console, _memory_table(config, ranks))
    if steps < config.train.steps:
        wanted = plural(config.train.steps, "step")
        console.print(f"a set is exhausted before the {wanted} of the config")


def _model_lines(config: RunConfig) -> list[str]:
    model = config.model
    parameters = [cost.parameters for cost in costs(model)]
    parts = " + ".join(f"{count:,}" for count in parameters)
    return [
        f"model: {sum(parameters):,} parameters ({parts} by stage and output), "
        f"context {model.context:,}, patch {model.patch}",
        f"cost: {training_flops_per_byte(model):,.0f} FLOPs a byte to train, "
        f"{generation_flops_per_byte(model):,.0f} to generate",
    ]


def _run_lines(
    config: RunConfig, plan: Plan, steps: int, ranks: int, accumulation: int
) -> list[str]:
    train, epoch_rows = config.train, plan.rows(0)
    payload_share = plan.epoch_bytes / (epoch_rows * config.model.context)
    run_rows = steps * train.global_batch
    return [
        f"epoch: {plural(epoch_rows, 'row')}, {size_text(plan.epoch_bytes)} of payload, "
        f"{1 - payload_share:.1%} framing and padding",
        f"step: {plural(train.global_batch, 'row')} on {plural(ranks, 'process', 'processes')}, "
        f"{plural(accumulation, 'micro batch', 'micro batches')} of {train.micro_batch} on each",
        f"run: {plural(steps, 'step')}, {plural(run_rows, 'row')}, "
        f"{run_rows / epoch_rows:.2f} epochs",
    ]


def _duration(config: RunConfig, steps: int) -> str:
    """Estimate the time of a run from its FLOPs and the measured speed of a matrix product."""
    ids = steps * config.train.global_batch * config.model.context
    flops = ids * training_flops_per_byte(config.model)
    processor = torch.device("cpu")
    precision = resolve_precision(processor, config.train.precision)
    hours = flops / (REACHED_SHARE * measured_matmul_flops(processor, precision)) / 3600
    return f"{hours:,.1f} hours" if hours >= 1 else plural(round(60 * hours), "minute")


def _memory_table(config: RunConfig, ranks: int) -> Table:
    """Memory by ZeRO stage, without and with offload; that of the run is marked."""
    run_case = zero_stage(config.train.deepspeed), has_offload(config.train.deepspeed)
    table = Table(box=SIMPLE)
    table.add_column("memory of a process")
    columns = ("weights", "gradients", "optimizer", "buffers", "activations")
    for column in (*columns, "on the host", "with the program"):
        table.add_column(column, justify="right")
    for stage, offload in [(0, False), (1, False), (2, False), (3, False), (2, True), (3, True)]:
        memory = memory_by_zero_stage(config, ranks, offload=offload)[stage]
        buffers = memory.gathered + max(memory.exchange, memory.update)
        table.add_row(
            f"ZeRO {stage}{', offload' * offload}"
            f"{' (this run)' if (stage, offload) == run_case else ''}",
            *map(size_text, (memory.weights, memory.gradients, memory.optimizer, buffers)),
            size_text(memory.activations.total),
            size_text(memory.host) if memory.host else "",
            size_text(memory.total),
        )
    return table


def _activation_line(config: RunConfig, ranks: int) -> str:
    """Activations of a micro batch by stage, as far as checkpointing leaves them."""
    held = memory_by_zero_stage(config, ranks)[0].activations
    parts = [f"{size_text(size)} stage {index}" for index, size in enumerate(held.stages)]
    parts.append(f"{size_text(held.logits)} logits")
    if held.autocast_copies:
        parts.append(f"{size_text(held.autocast_copies)} weights in bf16")
    return f"activations: {', '.join(parts)}"


def _set_table(config: RunConfig, plan: Plan) -> Table:
    table = Table(box=SIMPLE, caption="rows and passes of an epoch")
    table.add_column("set", overflow="fold")  # wraps long paths, cuts none
    for column in ("documents", "payload", "share", "rows", "passes"):
        table.add_column(column, justify="right")
    for source, rows, share, passes, size in zip(
        plan.sources,
        plan.source_rows(0),
        plan.shares,
        plan.passes,
        plan.source_bytes,
        strict=True,
    ):
        documents = source.set.counts(source.split).documents
        table.add_row(
            Text(source.set.location),
            f"{documents:,}",
            size_text(size),
            f"{share:.1%}",
            f"{rows:,}",
            f"{passes:.2f}",
        )
    return table
