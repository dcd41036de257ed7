"""`bytelm compress`: compress files under a model's probabilities."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bytelm.pipelines.cli.arguments import MAX_BATCH, WholeNumber, add_model
from bytelm.pipelines.cli.processes import add_processes, launch_processes

HELP = "Compress files under a model's probabilities."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="files, folders, or - for standard input",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="F.blm",
        help="file to write, which is new; - for standard output",
    )
    parser.add_argument(
        "--keep-files",
        action="store_true",
        help="code images and sounds byte for byte, not as pixels and samples",
    )
    parser.add_argument(
        "--batch",
        type=WholeNumber(1, MAX_BATCH),
        default=64,
        help="pieces, or files where the model mixes its outputs, that are coded at once; "
        "decompression needs memory for as many; one file with --adapt",
    )
    parser.add_argument(
        "--adapt",
        action="store_true",
        help="let a copy of the model learn from each file while it codes it, one file at a time: "
        "smaller, and slower both ways",
    )
    add_processes(parser, "pieces of the files")


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Compress the files and print their sizes."""
    if (status := launch_processes(options, argv)) is not None:
        return status

    from bytelm.pipelines.checkpoints.load import load_model, settled_location
    from bytelm.pipelines.checkpoints.untrained import adaptation_of
    from bytelm.pipelines.compression.compress import compress
    from bytelm.pipelines.compression.inputs import STANDARD
    from bytelm.pipelines.runtime.ranks import joined_ranks

    with joined_ranks() as ranks:
        location = settled_location(options.model, ranks)
        model, dataset_info = ranks.together(lambda: load_model(location))
        lines = compress(
            model,
            dataset_info.views,
            options.files,
            options.out,
            options.keep_files,
            options.batch,
            ranks,
            adaptation_of(location) if options.adapt else None,
        )
    for line in lines if ranks.rank == 0 else ():
        print(line, file=sys.stderr if options.out == STANDARD else sys.stdout)
    return 0
