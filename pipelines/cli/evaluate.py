"""`bytelm evaluate`: score a model on shard sets."""

from __future__ import annotations

import argparse
import json

from bytelm.pipelines.cli.arguments import MAX_BATCH, WholeNumber, add_model, add_precision
from bytelm.pipelines.evaluation import PLAIN, SCORINGS

HELP = "Score a model in bits per byte, and codecs on the same bytes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser)
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="SET", help="folders or URLs of shard sets"
    )
    parser.add_argument(
        "--split", default="val", choices=["train", "val", "test"], help="part of the sets to score"
    )
    parser.add_argument(
        "--batch",
        type=WholeNumber(1, MAX_BATCH),
        default=1,
        help="rows that the model scores at once",
    )
    add_precision(parser)
    parser.add_argument(
        "--scoring",
        default=PLAIN,
        choices=SCORINGS,
        help="plain: pieces, as in training; sliding: windows that overlap by half; strided: every "
        "window again half a patch later; both: sliding and strided, at four times the cost",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Evaluate the model and print the figures."""
    from rich.console import Console

    from bytelm.pipelines.evaluation.evaluate import evaluate
    from bytelm.pipelines.evaluation.table import evaluation_table
    from bytelm.pipelines.runtime.allocator import keep_freed_memory
    from bytelm.pipelines.runtime.tables import print_table

    keep_freed_memory()
    metrics, codecs = evaluate(
        options.model,
        options.data,
        options.split,
        options.batch,
        options.precision,
        options.scoring,
    )
    if options.json:
        print(json.dumps({"model": metrics, "codecs": codecs}, indent=1))
    else:
        title = f"bits per byte on {options.split}"
        print_table(Console(), evaluation_table(metrics, codecs, title))
    return 0
