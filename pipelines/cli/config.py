"""`bytelm config`: print the JSON Schema of config files."""

from __future__ import annotations

import argparse
import json

HELP = "Print the JSON Schema of config files, for editors."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--schema",
        action="store_true",
        required=True,
        help="print the schema (draft 2020-12)",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Print the schema."""
    from bytelm.pipelines.config_schema import json_schema

    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
    return 0
