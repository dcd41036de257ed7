"""`bytelm train`: train a model, in one process or in several."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

from bytelm.pipelines.cli.arguments import add_config

HELP = "Train a model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="RUN", help="folder of checkpoints and metrics"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint of RUN"
    )
    parser.add_argument(
        "--allow-fresh-start",
        action="store_true",
        help="with --resume: begin at step 0 if RUN has no checkpoint yet",
    )
    parser.add_argument(
        "--new-plan",
        action="store_true",
        help="with --resume: if the data changed, begin a new plan at its first row",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Check the run, then train in this process or launch one process for each rank."""
    from bytelm.pipelines.runtime.launcher import check_environment
    from bytelm.pipelines.runtime.signals import hold_save_requests

    if options.processes < 1:
        raise ValueError(f"--processes is {options.processes}, and must be at least 1")
    check_environment(options.processes)
    is_rank = "RANK" in os.environ
    is_launcher = options.processes > 1 and not is_rank
    hold_save_requests()

    from bytelm.pipelines.checkpoints import run_lock
    from bytelm.pipelines.config import load_config
    from bytelm.pipelines.runtime.allocator import keep_freed_memory
    from bytelm.pipelines.runtime.launcher import launch
    from bytelm.pipelines.training.preflight import ResumeOptions, check
    from bytelm.pipelines.training.trainer import Trainer

    keep_freed_memory()
    config = load_config(options.config, options.set)
    resume = ResumeOptions(options.resume, options.allow_fresh_start, options.new_plan)
    # The launcher holds the lock for its ranks; ranks of another launcher have rank 0 hold it.
    is_holder = not run_lock.adopt_inherited() and os.environ.get("RANK", "0") == "0"
    with run_lock.locked(options.out) if is_holder else nullcontext() as lock:
        if not is_rank:
            check(config, options.out, options.processes, resume)
        if is_launcher:
            inherited = {} if lock is None else {run_lock.INHERITED: lock}
            return launch(argv, options.processes, inherited)
        Trainer.start(config, options.out, resume).run()
    return 0
