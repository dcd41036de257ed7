"""`bytelm index`: make the indexes of a shard set again."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Make the indexes and the manifest of a set again, from its tars alone."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("set", type=Path, metavar="SET", help="folder of the set")


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Write the indexes and print the root hash."""
    from bytelm.pipelines.shards.reindex import reindex

    print(f"{options.set} indexed anew, root {reindex(options.set)[:16]}")
    return 0
