"""`bytelm init`: write a config to begin with."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path

HELP = "Write a config to begin with, in which every key is explained."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="SET",
        help="sets to train on, from which row length, packing and weights are chosen",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("run.yaml"), metavar="FILE", help="the config; a new file"
    )
    parser.add_argument(
        "--schema",
        type=Path,
        metavar="FILE",
        help="also write the JSON Schema there and name it in the config, so that editors complete "
        "and check its keys",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Write the config, and the schema if it is asked for."""
    from bytelm.pipelines.config_schema import json_schema
    from bytelm.pipelines.storage.files import write_atomic
    from bytelm.pipelines.training.config_template import config_template

    if options.out.exists():
        raise ValueError(f"{options.out} exists: remove it, or choose another --out")
    schema = None
    if options.schema:
        schema = os.path.relpath(options.schema.absolute(), options.out.absolute().parent)
    text = config_template(options.data, schema)
    for path, content in (
        (options.schema, json.dumps(json_schema(), indent=1)),
        (options.out, text),
    ):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content.encode())
            print(path)
    print(f"next: bytelm train {shlex.quote(str(options.out))} --out RUN")
    return 0
