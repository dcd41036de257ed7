"""`bytelm push`: upload an exported model to the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "Upload an exported model to the Hugging Face hub."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="folder that `bytelm export` wrote"
    )
    parser.add_argument("repository", metavar="USER/NAME", help="repository on the hub")
    parser.add_argument(
        "--public",
        action="store_true",
        help="let everybody read the repository; without it a new one is private",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Upload the model and print its address."""
    from bytelm.pipelines.checkpoints.push import push

    pushed = push(options.model, options.repository, options.public)
    if pushed.left_out:
        names = ", ".join(pushed.left_out)
        print(f"bytelm push: not uploaded, as no export wrote it: {names}", file=sys.stderr)
    print(f"{pushed.url} ({'private' if pushed.is_private else 'public'})")
    return 0
