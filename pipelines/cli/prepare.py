"""`bytelm prepare`: turn files into a shard set."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import bytelm
from bytelm.pipelines.cli.arguments import MAX_RATE, Number, WholeNumber
from bytelm.pipelines.cli.index import keep_counts

if TYPE_CHECKING:
    from bytelm.pipelines.config import RunConfig
    from bytelm.pipelines.prepare.prepare import PrepareOptions

HELP = "Turn files into a shard set."

_VALUES = (
    *("workers", "captions", "include", "exclude", "text_field", "image_field", "audio_field"),
    *("rate", "channels", "keep_depth", "keep_files", "shard_mb", "max_side", "max_mb"),
    "max_bad_share",
)
"""Options that have the names of `bytelm.prepare`'s arguments."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="file, folder, WebDataset tar, or table of documents (.jsonl, .csv, .parquet); a "
        "pattern such as shard-{000..012}.tar names several; tars and tables may lie at URLs",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="SET",
        help="folder of the set, or its URL at an object store (s3, gs, az, hf)",
    )
    parser.add_argument(
        "--workers",
        type=WholeNumber(1, 1024),
        default=os.cpu_count() or 1,
        help="decoding processes",
    )
    parser.add_argument(
        "--on",
        metavar="ADDRESS",
        help="run on a Ray cluster: ray://HOST:PORT, or ray for one of this machine, of --workers "
        "CPUs; all nodes must see sources and set at the same place",
    )
    parser.add_argument(
        "--part",
        type=part_of_set,
        metavar="I/N",
        help="decode share I of N only, from 0, in a job of its own; then run bytelm merge SET",
    )
    parser.add_argument(
        "--captions", type=Path, help="JSON file that maps the names of files to captions"
    )
    for option, effect in (("include", "use only"), ("exclude", "leave out")):
        parser.add_argument(
            f"--{option}",
            action="append",
            metavar="PATTERN",
            help=f"{effect} files whose name below the source, or that of a folder above them, "
            "matches; may be given several times",
        )
    for modality in ("text", "image", "audio"):
        parser.add_argument(
            f"--{modality}-field",
            metavar="COLUMN",
            help=f"column of tables that holds the {modality}; guessed where one column may",
        )
    parser.add_argument(
        "--rate",
        type=WholeNumber(1, MAX_RATE),
        help="resample sounds to this many samples per second",
    )
    parser.add_argument("--channels", type=int, choices=[1], help="mix sounds down to mono")
    parser.add_argument(
        "--keep-depth",
        action="store_true",
        help="keep 16 bits of images that have them, for the view deep, and 24 bits of sounds, "
        "for the view s24be",
    )
    parser.add_argument(
        "--keep-files", action="store_true", help="store the bytes of the files, decode nothing"
    )
    parser.add_argument(
        "--shard-mb",
        type=Number(0, math.inf, is_least_allowed=False),
        default=256,
        help="largest shard in millions of bytes",
    )
    parser.add_argument(
        "--max-side",
        type=WholeNumber(1, 65535),
        default=65535,
        help="longest side of an image in pixels",
    )
    parser.add_argument(
        "--max-mb",
        type=Number(0, math.inf, is_least_allowed=False),
        default=268,
        help="largest document in millions of bytes",
    )
    parser.add_argument(
        "--max-bad-share",
        type=Number(0, 1),
        default=0.5,
        help="fail if more than this share is lost of the files, of their bytes, or of the pairs",
    )
    parser.add_argument(
        "--count-for",
        type=Path,
        metavar="CONFIG",
        help="also count the rows that the set makes under this config, as bytelm index --count",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Prepare the set and print what it holds."""
    from bytelm.pipelines.prepare.prepare import summary
    from bytelm.pipelines.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    values = {name: getattr(options, name) for name in _VALUES}
    if options.part:
        if options.on:
            raise ValueError("--part and --on divide the work in two ways: choose one")
        if options.count_for:
            raise ValueError(
                "--count-for counts the rows of a whole set: leave it out, and after bytelm merge "
                "run bytelm index SET --count CONFIG"
            )
        return _run_part(options, bytelm.prepare_options(**values))
    config = _config_to_count_for(options.count_for)
    prepared = bytelm.prepare(
        options.sources, options.out, on=options.on, show_progress=True, **values
    )
    print(summary(prepared, options.out))
    if config:
        keep_counts(options.out, config)
    print(f"next: bytelm train --data {shlex.quote(str(options.out))} --minutes 10 --out RUN")
    return 0


def _config_to_count_for(path: Path | None) -> RunConfig | None:
    """The config of --count-for; without it the command need not import torch."""
    if path is None:
        return None
    from bytelm.pipelines.config import load_config

    return load_config(path, [])


def _run_part(options: argparse.Namespace, values: PrepareOptions) -> int:
    """Decode one part of a set, and say what comes next."""
    from rich.console import Console

    from bytelm.pipelines.prepare.parts import prepare_part
    from bytelm.pipelines.prepare.set_target import local_folder
    from bytelm.pipelines.shards.set_summary import counted

    part, parts = options.part
    out = local_folder(options.out)
    prepared = prepare_part(options.sources, out, values, part, parts, Console(stderr=True))
    state = "decoded" if prepared.made else "decoded already"
    print(
        f"{options.out}: part {part}/{parts}, {counted(prepared.items, 'work item')} of "
        f"{prepared.size / 1e6:,.1f} MB {state}"
    )
    print(f"when all parts are there: bytelm merge {shlex.quote(str(options.out))}")
    return 0


def part_of_set(text: str) -> tuple[int, int]:
    """The number of a part and how many there are, of `I/N`."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part: 0/3, 1/3 and 2/3 are three parts")
    return int(match[1]), int(match[2])
