"""`bytelm merge`: make a set of the parts that `bytelm prepare --part` has decoded."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bytelm.pipelines.cli.prepare import part_of_set

HELP = "Make a shard set of its parts."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("out", type=Path, metavar="SET", help="--out of bytelm prepare --part")
    parser.add_argument(
        "--part",
        type=part_of_set,
        metavar="I/N",
        help="write share I of N of the shards only, from 0, with the N of the parts; then run "
        "bytelm merge SET",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Merge the parts and print what the set holds, or write one share of its shards."""
    from rich.console import Console

    from bytelm.pipelines.prepare.merge import merge_parts, merge_share
    from bytelm.pipelines.prepare.prepare import summary
    from bytelm.pipelines.shards.set_summary import counted

    if options.part:
        share, shares = options.part
        merged = merge_share(options.out, share, shares, Console(stderr=True))
        state = "written" if merged.made else "written already"
        print(
            f"{options.out}: share {share}/{shares}, {counted(merged.shards, 'shard')} of "
            f"{merged.size / 1e6:,.1f} MB {state}"
        )
        print(f"when all shares are there: bytelm merge {shlex.quote(str(options.out))}")
        return 0
    prepared = merge_parts(options.out, Console(stderr=True))
    print(summary(prepared, options.out))
    return 0
