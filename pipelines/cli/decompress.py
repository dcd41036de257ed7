"""`bytelm decompress`: restore the files that `bytelm compress` coded."""

from __future__ import annotations

import argparse
from pathlib import Path

from bytelm.pipelines.cli.arguments import add_model

HELP = "Restore compressed files, with the model that compressed them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser)
    parser.add_argument("file", type=Path, metavar="F.blm", help="compressed file")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the restored files"
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Restore the files and print their paths."""
    from bytelm.pipelines.checkpoints.load import load_model
    from bytelm.pipelines.compression.compress import decompress

    model, _ = load_model(options.model)
    for path in decompress(model, options.file, options.out):
        print(path)
    return 0
