"""`bytelm prepare`: turn files into a shard set."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from pathlib import Path

import bytelm
from bytelm.pipelines.cli.arguments import MAX_RATE, Number, WholeNumber

HELP = "Turn files into a shard set."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="file, folder, WebDataset tar, or table of documents (.jsonl, .csv, .parquet); a "
        "pattern such as shard-{000..012}.tar names several; tars and tables may lie at URLs",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="SET", help="folder of the set")
    parser.add_argument(
        "--workers",
        type=WholeNumber(1, 1024),
        default=os.cpu_count() or 1,
        help="decoding processes",
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


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Prepare the set and print what it holds."""
    from bytelm.pipelines.prepare.prepare import summary

    prepared = bytelm.prepare(
        options.sources,
        options.out,
        workers=options.workers,
        captions=options.captions,
        include=options.include,
        exclude=options.exclude,
        text_field=options.text_field,
        image_field=options.image_field,
        audio_field=options.audio_field,
        rate=options.rate,
        channels=options.channels,
        keep_depth=options.keep_depth,
        keep_files=options.keep_files,
        shard_mb=options.shard_mb,
        max_side=options.max_side,
        max_mb=options.max_mb,
        max_bad_share=options.max_bad_share,
        show_progress=True,
    )
    print(summary(prepared, options.out))
    print(f"next: bytelm train --data {shlex.quote(str(options.out))} --minutes 10 --out RUN")
    return 0
