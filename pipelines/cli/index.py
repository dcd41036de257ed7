"""`bytelm index`: make the indexes of a shard set again, or count its rows for a config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bytelm.pipelines.config import RunConfig

HELP = "Make the indexes and the manifest of a set again, from its tars alone; or count its rows."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("set", metavar="SET", help="folder of the set; with --count a URL too")
    parser.add_argument(
        "--count",
        type=Path,
        metavar="CONFIG",
        help="count the rows that the set makes under this config, and keep the counts with the "
        "set, so that no training has to; indexes and manifest stay as they are",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Write the indexes and print the root hash, or write counts and print their names."""
    if options.count:
        from bytelm.pipelines.config import load_config

        keep_counts(options.set, load_config(options.count, []))
        return 0
    from bytelm.pipelines.shards.reindex import reindex

    print(f"{options.set} indexed anew, root {reindex(Path(options.set))[:16]}")
    return 0


def keep_counts(location: str, config: RunConfig) -> None:
    """Count the rows of a set that a training of this config reads, keep the counts with the set,
    and print their names."""
    from bytelm.pipelines.data.kept_counts import keep_with_set
    from bytelm.pipelines.shards.reader import open_set
    from bytelm.pipelines.training.preflight import TRAINING_SPLITS, plan_config

    shard_set = open_set(location, config.data.cache_folder, config.data.cache_gb)
    for name in keep_with_set(shard_set, TRAINING_SPLITS, plan_config(config)):
        print(f"{location}/{name}")
