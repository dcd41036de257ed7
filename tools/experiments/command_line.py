"""Options that the experiments' commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from bytelm.modalities import MODALITIES
from bytelm.tools.experiments.harness import Budget
from bytelm.tools.repository import DEMO_FILES


def experiment_parser(description: str, minutes: float) -> argparse.ArgumentParser:
    """Options of an experiment with one thread a run, whose seeds may run beside each other."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="files of one modality below `train` and `val`",
    )
    add_work(parser)
    add_budget(parser, minutes)
    parser.add_argument(
        "--seeds", type=_seeds, default="0,1", metavar="N,...", help="of weights and dropout"
    )
    return parser


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The folders of files, which may be left out."""
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[DEMO_FILES / modality for modality in MODALITIES],
        metavar="FOLDER",
        help="files of one modality below `train` and `val`; the demo's by default",
    )


def add_work(parser: argparse.ArgumentParser) -> None:
    """The option that names the folder of results."""
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="keeps sets and finished runs"
    )


def add_budget(parser: argparse.ArgumentParser, minutes: float) -> None:
    """The options that say how long a training lasts."""
    parser.add_argument("--minutes", type=float, default=minutes, help="of each training")
    parser.add_argument("--flops", type=float, help="of each training, in place of a time")


def budget_of(options: argparse.Namespace) -> Budget:
    """The budget that the options of `add_budget` name."""
    if options.flops is not None:
        return Budget(options.flops, "FLOPs")
    return Budget(60 * options.minutes)


def _seeds(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
