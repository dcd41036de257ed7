"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument MODEL."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a run's folder, an exported model's folder, or a Hugging Face repository",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add `--precision` of a model that is not trained."""
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16"], help="arithmetic of the model"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG, `--set` and `--processes`."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of the run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the config, as train.steps=500; may be repeated",
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="training processes (ranks) on this machine"
    )
