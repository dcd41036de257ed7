"""`bytelm evaluate`: score a model on shard sets."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.pipelines.cli.arguments import (
    MAX_BATCH,
    WholeNumber,
    add_model,
    add_precision,
)
from bytelm.pipelines.cli.processes import add_processes, launch_processes
from bytelm.pipelines.evaluation import ADAPT, PLAIN, SCORINGS

if TYPE_CHECKING:
    from bytelm.pipelines.evaluation.records import Evaluation

HELP = "Score a model in bits per byte, and codecs on the same bytes."
MAX_LIMIT = 10**12


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
        "--limit",
        type=WholeNumber(1, MAX_LIMIT),
        metavar="N",
        help="score a sample of N documents, as evenly from each set as the sets allow; the same "
        "ones in each call",
    )
    parser.add_argument(
        "--batch",
        type=WholeNumber(1, MAX_BATCH),
        default=1,
        help="rows that a thread of the model scores at once; one document with --adapt",
    )
    add_precision(parser)
    scoring = parser.add_mutually_exclusive_group()
    scoring.add_argument(
        "--scoring",
        default=PLAIN,
        choices=SCORINGS,
        help="plain: pieces, as in training; sliding: windows that overlap by half; strided: every "
        "window again half a patch later; both: sliding and strided, at four times the cost",
    )
    scoring.add_argument(
        "--adapt",
        dest="scoring",
        action="store_const",
        const=ADAPT,
        help="let the model learn from each document while it scores it, as `compress --adapt` "
        "does; it begins each one anew",
    )
    add_processes(parser, "documents")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Evaluate the model in this process or in several, and print and keep the figures."""
    if (status := launch_processes(options, argv)) is not None:
        return status

    from bytelm.pipelines.checkpoints.load import is_url
    from bytelm.pipelines.evaluation.evaluate import evaluate
    from bytelm.pipelines.evaluation.records import EVALUATIONS_FOLDER
    from bytelm.pipelines.runtime.allocator import keep_freed_memory
    from bytelm.pipelines.runtime.ranks import joined_ranks
    from bytelm.pipelines.storage.remote import folder_of

    keep_freed_memory()
    run = None if is_url(options.model) else folder_of(options.model)
    with joined_ranks() as ranks:
        evaluation = evaluate(
            options.model,
            options.data,
            options.split,
            options.batch,
            options.precision,
            options.scoring,
            options.limit,
            ranks,
            run / EVALUATIONS_FOLDER if run else None,
        )
    if ranks.rank == 0:
        _print(evaluation, options.json)
        _keep(run, evaluation)
    return 0


def _print(evaluation: Evaluation, as_json: bool) -> None:
    from rich.console import Console

    from bytelm.pipelines.evaluation.table import print_evaluation

    if as_json:
        print(json.dumps(evaluation.to_dict(), indent=1, allow_nan=False))
    else:
        print_evaluation(Console(), evaluation)


def _keep(run: Path | None, evaluation: Evaluation) -> None:
    """Keep the evaluation in the folder of its run; a folder that cannot be written is no error.

    Args:
        run: the folder; None for a model at a URL, whose evaluation is printed only.
    """
    from bytelm.pipelines.evaluation.records import keep_evaluation

    if evaluation.about["step"] is None or run is None:
        return
    try:
        keep_evaluation(run, evaluation)
    except OSError as error:
        print(f"bytelm evaluate: the evaluation is not kept: {error}", file=sys.stderr)
