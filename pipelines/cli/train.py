"""`bytelm train`: train a model, in one process or in several.

The config comes from a file, from the run that is resumed, or is chosen from the sets of `--data`.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.pipelines.cli.arguments import Number, WholeNumber, add_config_options

if TYPE_CHECKING:
    from bytelm.pipelines.config import RunConfig
    from bytelm.pipelines.training.auto_config import AutoConfig
    from bytelm.pipelines.training.preflight import ResumeOptions
    from bytelm.pipelines.training.step_speed import StepSpeed

HELP = "Train a model."
MINUTES = 10.0
MAX_MINUTES = 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "config", type=Path, nargs="?", metavar="CONFIG", help="YAML file of the run"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="SET",
        help="in place of CONFIG: sets, from which and from this machine's speed a config is "
        "chosen and kept as RUN/config.yaml",
    )
    parser.add_argument(
        "--minutes",
        type=Number(0, MAX_MINUTES, is_least_allowed=False),
        metavar="N",
        help=f"with --data: time from the start of the command to its end (default: {MINUTES:g})",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="RUN", help="folder of checkpoints and metrics"
    )
    add_config_options(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest checkpoint of RUN, or of its train.checkpoint_url; without "
        "CONFIG, with the run's own",
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
    parser.add_argument(
        "--stop-status",
        type=WholeNumber(0, 125),
        default=0,
        metavar="N",
        help="exit status of a run that is asked to stop and has steps left (default: 0); for "
        "schedulers that take 0 for the end of the job",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Check the run, then train in this process or launch one process for each rank."""
    started = time.monotonic()
    from bytelm.pipelines.runtime.launcher import check_environment
    from bytelm.pipelines.runtime.signals import hold_save_requests

    if options.processes < 1:
        raise ValueError(f"--processes is {options.processes}, and must be at least 1")
    check_environment(options.processes)
    is_rank = "RANK" in os.environ
    is_launcher = options.processes > 1 and not is_rank
    _check_source(options, is_rank)
    hold_save_requests()

    from bytelm.pipelines.checkpoints import run_lock
    from bytelm.pipelines.checkpoints.remote_run import check_unused, fetch_newest
    from bytelm.pipelines.checkpoints.run_folder import CHOSEN_CONFIG_FILE
    from bytelm.pipelines.runtime.allocator import keep_freed_memory
    from bytelm.pipelines.runtime.launcher import is_elastic, launch, status_of_stopped_rank
    from bytelm.pipelines.storage.files import write_atomic
    from bytelm.pipelines.training.pace import TimeBudget
    from bytelm.pipelines.training.preflight import ResumeOptions, check
    from bytelm.pipelines.training.trainer import Trainer

    keep_freed_memory()
    resume = ResumeOptions(options.resume, options.allow_fresh_start, options.new_plan)
    # The launcher holds the lock for its ranks; ranks of another launcher have rank 0 hold it.
    is_holder = not run_lock.adopt_inherited() and os.environ.get("RANK", "0") == "0"
    with run_lock.locked(options.out) if is_holder else nullcontext() as lock:
        chosen = _chosen_config(options, resume, started)
        config = chosen.config if chosen else _given_config(options)
        if is_holder and (url := config.train.checkpoint_url):
            if options.resume:
                for line in fetch_newest(url, options.out):
                    print(line, flush=True)
            elif not is_elastic():  # torchrun's restarts resume without being told
                check_unused(url)
        if not is_rank:
            check(config, options.out, options.processes, resume)
        if chosen:
            write_atomic(options.out / CHOSEN_CONFIG_FILE, chosen.text.encode())
        if is_launcher:
            inherited = {} if lock is None else {run_lock.INHERITED: lock}
            arguments = _arguments_of_ranks(options, argv, chosen)
            return launch(arguments, options.processes, inherited, options.stop_status)
        budget = chosen.budget if chosen else TimeBudget.of_launcher()
        trainer = Trainer.start(config, options.out, resume, budget)
        if trainer.run():
            return 0
    return status_of_stopped_rank(trainer.signals.stop_requested, options.stop_status)


def _check_source(options: argparse.Namespace, is_rank: bool) -> None:
    """Check that the config has one source; raises ValueError with a way out."""
    if options.config and options.data:
        raise ValueError(
            f"{options.config} and --data are both given: CONFIG names its sets itself, so leave "
            "one of them out"
        )
    if options.minutes is not None and not options.data:
        raise ValueError(
            "--minutes goes with --data SET...; a run of CONFIG, or one that is resumed, has its "
            "length in train.steps (--set train.steps=N)"
        )
    if not (options.config or options.data or options.resume):
        raise ValueError(
            "there is nothing to train on: name a CONFIG, or sets with --data SET... (made by "
            "bytelm prepare FILES --out SET)"
        )
    if options.data and is_rank:
        raise ValueError(
            "--data measures this machine before the run, which ranks of another launcher cannot "
            "do together: use --processes N, or write a config with bytelm init"
        )


def _given_config(options: argparse.Namespace) -> RunConfig:
    """The config of CONFIG, or without it of the run that is resumed, with the values of --set.

    A run without its folder has its config at the URL that --set gives.
    """
    from bytelm.pipelines.checkpoints.remote_run import fetch_config
    from bytelm.pipelines.checkpoints.run_folder import CONFIG_FILE, saved_config
    from bytelm.pipelines.config import config_from_dict, load_config, override_value

    if options.config:
        return load_config(options.config, options.set)
    values = saved_config(options.out)
    given = dict(override.split("=", 1) for override in options.set if "=" in override)
    if values is None and (url := given.get("train.checkpoint_url")):
        values = fetch_config(url)
    if values is None:
        raise ValueError(
            f"{options.out} has no {CONFIG_FILE} to continue with: name the CONFIG of the run, or "
            "the URL of its checkpoints with --set train.checkpoint_url=URL"
        )
    paths = [one["path"] for one in values["data"]["sets"]]
    if options.data and options.data != paths:
        raise ValueError(
            f"{options.out} was trained on {' '.join(paths)}: leave out --data, or choose another "
            "--out"
        )
    for override in options.set:
        override_value(values, override)
    return config_from_dict(values)


def _chosen_config(
    options: argparse.Namespace, resume: ResumeOptions, started: float
) -> AutoConfig | None:
    """The config that is chosen for a new run on the sets of --data; None for every other run."""
    if not options.data or resume.resumes(options.out):
        return None
    from bytelm.pipelines.checkpoints.run_folder import CHOSEN_CONFIG_FILE
    from bytelm.pipelines.training.auto_config import choose
    from bytelm.pipelines.training.preflight import check_new
    from bytelm.pipelines.training.step_speed import measure

    check_new(options.out, resume)
    seconds = 60 * (MINUTES if options.minutes is None else options.minutes)
    is_announced = False

    def measure_speed(config: RunConfig, length: float) -> StepSpeed:
        nonlocal is_announced
        if not is_announced:  # the sets could be opened: a mistake in their names comes first
            print(f"measuring this machine for {options.out / CHOSEN_CONFIG_FILE}", flush=True)
            is_announced = True
        return measure(config, length)

    chosen = choose(options.data, seconds, started, options.set, options.processes, measure_speed)
    print(chosen.summary, flush=True)
    return chosen


def _arguments_of_ranks(
    options: argparse.Namespace, argv: list[str], chosen: AutoConfig | None
) -> list[str]:
    """The command line of the ranks: this one, or with the config that was chosen for them."""
    if chosen is None:
        return argv
    from bytelm.pipelines.checkpoints.run_folder import CHOSEN_CONFIG_FILE

    if chosen.budget:
        chosen.budget.tell_ranks()
    arguments = ["train", str(options.out / CHOSEN_CONFIG_FILE), "--out", str(options.out)]
    flags = {"--resume": options.resume, "--allow-fresh-start": options.allow_fresh_start}
    arguments += [flag for flag, is_given in flags.items() if is_given]
    return [*arguments, "--processes", str(options.processes)]
