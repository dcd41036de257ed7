"""`--processes` of the commands whose ranks share a work and put its parts together."""

from __future__ import annotations

import argparse
import os

from bytelm.pipelines.cli.arguments import MAX_PROCESSES, WholeNumber

MOST_PER_PROCESSOR = 4
"""Processes for each processor beyond which they only take memory and time from each other."""


def add_processes(parser: argparse.ArgumentParser, shared: str) -> None:
    """Add `--processes`.

    Args:
        shared: what the processes share, in the plural.
    """
    parser.add_argument(
        "--processes",
        type=WholeNumber(1, MAX_PROCESSES),
        default=1,
        help=f"processes (ranks) on this machine that share the {shared}; the result is the same",
    )


def launch_processes(options: argparse.Namespace, argv: list[str]) -> int | None:
    """Start this command once for each rank and return the exit status; None in a process that
    has to do the work itself, alone or as a rank.

    Raises ValueError for more processes than this machine can serve, and for variables of a
    launcher that do not fit together.
    """
    from bytelm.pipelines.runtime.launcher import check_environment, exit_with_launcher, launch

    # Torch reads it when it is imported. A rank that does not come has a line of ours.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    check_environment(options.processes)
    if options.processes > 1 and "RANK" not in os.environ:
        _check_number(options.processes)
        return launch(argv, options.processes, {})
    exit_with_launcher()
    return None


def _check_number(processes: int) -> None:
    """Raise ValueError for far more processes than this machine has processors and GPUs."""
    processors = len(os.sched_getaffinity(0))
    if processes <= MOST_PER_PROCESSOR * processors:
        return
    import torch

    gpus = torch.cuda.device_count()
    if processes > gpus:
        has = f"{gpus} GPUs" if gpus else f"{processors} processors"
        raise ValueError(
            f"--processes {processes} on a machine of {has}: they would take memory and time from "
            f"each other, so use --processes {gpus or processors}"
        )
