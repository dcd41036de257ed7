"""`bytelm plan`: show what a config will do."""

from __future__ import annotations

import argparse

from bytelm.pipelines.cli.arguments import add_config

HELP = "Show what a config will do: rows, steps, FLOPs and memory. Trains nothing."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config(parser)


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Print the preview."""
    from rich.console import Console

    from bytelm.pipelines.config import load_config
    from bytelm.pipelines.training.preview import preview

    preview(load_config(options.config, options.set), options.processes, Console())
    return 0
