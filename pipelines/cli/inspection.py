"""`bytelm inspect`: show, verify and extract what a shard set holds."""

from __future__ import annotations

import argparse

from bytelm.pipelines.cli.arguments import WholeNumber, output_folder

HELP = "Show what a shard set holds."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("set", metavar="SET", help="folder or URL")
    parser.add_argument("--verify", action="store_true", help="check the hash of every shard")
    parser.add_argument(
        "--extract",
        type=WholeNumber(1, 1 << 32),
        metavar="N",
        help="write N documents of each modality as files to --out",
    )
    parser.add_argument("--out", type=output_folder, metavar="DIR", help="folder for --extract")
    parser.add_argument(
        "--json", action="store_true", help="print JSON with every number in full, not a table"
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Show the set; the status is 1 where `--verify` finds damage."""
    from rich.console import Console

    from bytelm.pipelines.shards.inspection import inspect

    return inspect(
        options.set,
        verify=options.verify,
        extract=options.extract,
        out=options.out,
        as_json=options.json,
        console=Console(),
    )
