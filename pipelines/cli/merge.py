"""`bytelm merge`: make a set of the parts that `bytelm prepare --part` has decoded."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Make a shard set of its parts."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("out", type=Path, metavar="SET", help="--out of bytelm prepare --part")


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Merge the parts and print what the set holds."""
    from rich.console import Console

    from bytelm.pipelines.prepare.parts import merge_parts
    from bytelm.pipelines.prepare.prepare import summary

    prepared = merge_parts(options.out, Console(stderr=True))
    print(summary(prepared, options.out))
    return 0
