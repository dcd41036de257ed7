"""`bytelm export`: copy a run's newest model."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Copy a run's newest model to a folder of its own."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="MODEL", help="folder of the model, which is new"
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Copy the model and print its folder."""
    from bytelm.pipelines.checkpoints.load import export

    export(options.run, options.out)
    print(options.out)
    return 0
