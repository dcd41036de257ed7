"""`bytelm export`: a run's newest model with its card and samples."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "Write a run's newest model, its model card and its samples to a folder of their own."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="MODEL", help="folder of the model, which is new"
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence of the model for its card, by the Hugging Face hub's id: mit, cc-by-4.0, ...",
    )
    parser.add_argument(
        "--output-mixing",
        action=argparse.BooleanOptionalAction,
        help="whether the exported model mixes its distribution of each byte with those of "
        "predictors: fewer bits, above all on files unlike its training data, slower coding "
        "(default: as the run's config says)",
    )
    parser.add_argument(
        "--dtype",
        default="fp32",
        choices=["fp32", "bf16"],
        help="numbers in which the weights are stored: bf16 takes half of the space, and a loaded "
        "model computes with the rounded weights in fp32",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Export the model, say what its card lacks, and print its folder."""
    from bytelm.pipelines.reporting.model_export import export_model

    lacks = export_model(
        options.run, options.out, options.license, options.output_mixing, options.dtype
    )
    for line in lacks:
        print(f"bytelm export: the card lacks something: {line}", file=sys.stderr)
    print(options.out)
    return 0
