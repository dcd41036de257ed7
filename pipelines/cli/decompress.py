"""`bytelm decompress`: restore the files that `bytelm compress` coded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bytelm.pipelines.cli.arguments import add_model, output_folder
from bytelm.pipelines.cli.processes import add_processes, launch_processes

HELP = "Restore compressed files, with the model that compressed them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser)
    parser.add_argument(
        "file", type=Path, metavar="F.blm", help="compressed file, or - for standard input"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=output_folder,
        metavar="DIR",
        help="folder for the restored files; - writes a single one to standard output",
    )
    add_processes(parser, "pieces of the files")


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Restore the files and print their paths; the status is 1 where one cannot have its name."""
    if (status := launch_processes(options, argv)) is not None:
        return status

    from bytelm.pipelines.checkpoints.load import load_model, settled_location
    from bytelm.pipelines.compression.compress import decompress
    from bytelm.pipelines.runtime.ranks import joined_ranks

    with joined_ranks() as ranks:
        location = settled_location(options.model, ranks)
        model, _ = ranks.together(lambda: load_model(location))
        paths, problems = decompress(model, options.file, options.out, ranks)
    if ranks.rank:
        return 0
    for path in paths:
        print(path)
    for line in problems:
        print(f"bytelm decompress: not restored: {line}", file=sys.stderr)
    return 1 if problems else 0
