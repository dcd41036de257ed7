"""`bytelm demo`: run all steps on the demo's files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bytelm.pipelines.cli.arguments import output_folder

HELP = "Prepare, train, evaluate and generate on the files in examples/demo."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--data", type=Path, default=Path("examples/demo"), metavar="DIR", help="folder of files"
    )
    parser.add_argument(
        "--out",
        type=output_folder,
        default=Path("demo"),
        metavar="DIR",
        help="folder of all results; a demo that it holds goes on",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Run `tools/demo.py` in a process of its own."""
    from bytelm.pipelines.runtime.child_command import run_child

    if not (options.data / "text" / "train").is_dir():
        raise ValueError(
            f"there are no demo files in {options.data}: run this in the repository, or name their "
            "folder with --data"
        )
    command = [sys.executable, "-m", "bytelm.tools.demo", str(options.data), str(options.out)]
    return run_child(command)[0]
