"""The command `bytelm`. Nothing heavy is imported before a command needs it.

Exit status: 0, 2 for a mistake of the user's (one line on stderr), 1 for a failure, and 3 for a
training run whose loss or gradient stayed not finite.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bytelm.pipelines.cli import generate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = _parser()
    options = parser.parse_args(given)
    try:
        return commands[options.command](options, given)
    except ValueError as error:
        print(f"bytelm {options.command}: {_line(error)}", file=sys.stderr)
        return 1 if _is_failure(error) else 2
    except (RuntimeError, OSError) as error:
        if os.environ.get("BYTELM_TRACEBACK"):
            raise
        if not _is_said_by_rank_0(error):
            print(f"bytelm {options.command}: {_line(error)}", file=sys.stderr)
        return 3 if _has_diverged(error) else 1
    except KeyboardInterrupt:
        print(f"bytelm {options.command}: interrupted", file=sys.stderr)
        return 130


def _line(error: BaseException) -> str:
    """The message in one line; of an error in a data worker, what comes after its traceback."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.rstrip().rpartition("\n")[2].partition(": ")[2]
    return " ".join(text.split())


def _is_failure(error: ValueError) -> bool:
    """Damage found in what was right once is a failure, not a mistake of the user's."""
    from bytelm.pipelines.shards.reader import DamageError

    return isinstance(error, DamageError)


def _is_said_by_rank_0(error: BaseException) -> bool:
    from bytelm.pipelines.errors import OnAllRanksError

    return isinstance(error, OnAllRanksError) and os.environ.get("RANK", "0") != "0"


def _has_diverged(error: BaseException) -> bool:
    from bytelm.pipelines.errors import DivergedError

    return isinstance(error, DivergedError)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a config value"
    )


Command = Callable[[argparse.Namespace, list[str]], int]


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    parser = argparse.ArgumentParser(
        prog="bytelm", description="One MEGABYTE model on the raw bytes of images, audio and text."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    formatter = argparse.ArgumentDefaultsHelpFormatter

    def add(name: str, help_: str) -> argparse.ArgumentParser:
        return subparsers.add_parser(name, help=help_, description=help_, formatter_class=formatter)

    prepare = add("prepare", "Turn files into a shard set.")
    kinds = "files, folders, WebDataset tars, or a pattern of them as shard-{000..012}.tar"
    prepare.add_argument("sources", nargs="+", metavar="SRC", help=kinds)
    prepare.add_argument("--out", required=True, type=Path, metavar="SET")
    prepare.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    prepare.add_argument("--captions", type=Path, help="JSON: file name to caption")
    prepare.add_argument("--rate", type=int, help="resample sounds to this many Hz")
    prepare.add_argument("--channels", type=int, choices=[1], help="1 mixes sounds down to mono")
    prepare.add_argument("--keep-files", action="store_true", help="store files as they are")
    prepare.add_argument(
        "--shard-mb", type=float, default=256, help="size of a shard in 10^6 bytes"
    )
    prepare.add_argument("--max-side", type=int, default=65535, help="pixels of an image's side")
    prepare.add_argument(
        "--max-mb", type=float, default=268, help="size of a document in 10^6 bytes"
    )
    prepare.add_argument(
        "--max-bad-share", type=float, default=0.5, help="more bad files than this are an error"
    )

    inspect = add("inspect", "Show what a shard set holds.")
    inspect.add_argument("set", metavar="SET", help="folder or URL")
    inspect.add_argument("--verify", action="store_true", help="check every hash")
    inspect.add_argument(
        "--extract", type=int, metavar="N", help="write N documents a modality back"
    )
    inspect.add_argument("--out", type=Path, help="where --extract writes")

    index = add("index", "Make a set's indexes and manifest again from its tars alone.")
    index.add_argument("set", type=Path, metavar="SET")

    plan = add("plan", "Show what a config will do, before anything runs.")
    plan.add_argument("config", type=Path, metavar="CONFIG")
    plan.add_argument("--processes", type=int, default=1, help="ranks on this machine")
    _add_set(plan)

    train = add("train", "Train a model.")
    train.add_argument("config", type=Path, metavar="CONFIG")
    train.add_argument("--out", required=True, type=Path, metavar="RUN")
    train.add_argument("--processes", type=int, default=1, help="ranks on this machine")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    train.add_argument(
        "--allow-fresh-start",
        action="store_true",
        help="with --resume: begin at step 0 where the run has no checkpoint yet",
    )
    train.add_argument(
        "--new-plan",
        action="store_true",
        help="resume on changed data: a new plan from its first row",
    )
    _add_set(train)

    evaluate = add("evaluate", "Score a model in bits per byte.")
    evaluate.add_argument("model", type=Path, metavar="MODEL")
    evaluate.add_argument("--data", required=True, nargs="+", metavar="SET")
    evaluate.add_argument("--split", default="val", choices=["train", "val", "test"])
    evaluate.add_argument("--batch", type=int, default=1, help="rows at once")
    evaluate.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    ways = ["plain", "sliding", "strided", "both"]
    evaluate.add_argument("--scoring", default="plain", choices=ways, help="windows that overlap")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")

    generate.add_arguments(add("generate", "Generate files."))

    compress = add("compress", "Compress files under a model's probabilities.")
    compress.add_argument("model", type=Path, metavar="MODEL")
    compress.add_argument("files", nargs="+", type=Path, metavar="FILE")
    compress.add_argument("--out", required=True, type=Path, metavar="F.blm")
    compress.add_argument(
        "--keep-files", action="store_true", help="code images and sounds byte for byte"
    )
    compress.add_argument(
        "--batch", type=int, default=64, help="pieces at once, also of decompress"
    )

    decompress = add("decompress", "Restore compressed files.")
    decompress.add_argument("model", type=Path, metavar="MODEL")
    decompress.add_argument("file", type=Path, metavar="F.blm")
    decompress.add_argument("--out", required=True, type=Path, metavar="DIR")

    export = add("export", "Copy a run's newest model to a folder of its own.")
    export.add_argument("run", type=Path, metavar="RUN")
    export.add_argument("--out", required=True, type=Path, metavar="MODEL")

    demo = add("demo", "Prepare, train, evaluate and generate on the files in examples/demo.")
    demo.add_argument("--data", type=Path, default=Path("examples/demo"), metavar="DIR")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR")

    return parser, {
        "prepare": _prepare,
        "inspect": _inspect,
        "index": _index,
        "plan": _plan,
        "train": _train,
        "evaluate": _evaluate,
        "generate": generate.run,
        "compress": _compress,
        "decompress": _decompress,
        "export": _export,
        "demo": _demo,
    }


def _prepare(options: argparse.Namespace, given: list[str]) -> int:
    from rich.console import Console

    from bytelm.modalities.base import DecodeOptions, Limits
    from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare, summary

    decode = DecodeOptions(
        limits=Limits(max_bytes=int(options.max_mb * 1e6), max_side=options.max_side),
        audio_rate=options.rate,
        audio_channels=options.channels,
        keep_files=options.keep_files,
    )
    prepare_options = PrepareOptions(
        decode=decode,
        workers=options.workers,
        shard_bytes=int(options.shard_mb * 1e6),
        captions=options.captions,
        max_bad_share=options.max_bad_share,
    )
    prepared = prepare(options.sources, options.out, prepare_options, Console(stderr=True))
    print(summary(prepared, options.out))
    return 0


def _inspect(options: argparse.Namespace, given: list[str]) -> int:
    from rich.console import Console

    from bytelm.pipelines.shards.inspection import inspect

    return inspect(
        options.set,
        verify=options.verify,
        extract=options.extract,
        out=options.out,
        console=Console(),
    )


def _index(options: argparse.Namespace, given: list[str]) -> int:
    from bytelm.pipelines.shards.reindex import reindex

    print(f"{options.set} indexed anew, root {reindex(options.set)[:16]}")
    return 0


def _plan(options: argparse.Namespace, given: list[str]) -> int:
    from rich.console import Console

    from bytelm.pipelines.config import load_config
    from bytelm.pipelines.training.preview import preview

    preview(load_config(options.config, options.set), options.processes, Console())
    return 0


def _train(options: argparse.Namespace, given: list[str]) -> int:
    from bytelm.pipelines.runtime import signals

    if options.processes < 1:
        raise ValueError(f"--processes is {options.processes}, and must be at least 1")
    is_rank = "RANK" in os.environ
    is_launcher = options.processes > 1 and not is_rank
    # Before the imports that take seconds.
    if is_launcher:
        signals.block_until_listening()
    else:
        requests = signals.SignalListener()

    from bytelm.pipelines.config import load_config
    from bytelm.pipelines.runtime.allocator import keep_freed_memory
    from bytelm.pipelines.runtime.launcher import launch
    from bytelm.pipelines.training.preflight import ResumeOptions, check
    from bytelm.pipelines.training.trainer import train

    keep_freed_memory()
    config = load_config(options.config, options.set)
    start = ResumeOptions(options.resume, options.allow_fresh_start, options.new_plan)
    if not is_rank:
        check(config, options.out, options.processes, start)
    if is_launcher:
        return launch(given, options.processes)
    train(config, options.out, start, requests)
    return 0


def _evaluate(options: argparse.Namespace, given: list[str]) -> int:
    from rich.console import Console

    from bytelm.pipelines.evaluation.evaluate import evaluate
    from bytelm.pipelines.evaluation.table import evaluation_table
    from bytelm.pipelines.runtime.allocator import keep_freed_memory

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
        Console().print(evaluation_table(metrics, codecs, title))
    return 0


def _compress(options: argparse.Namespace, given: list[str]) -> int:
    from bytelm.pipelines.checkpoints.load import load_model
    from bytelm.pipelines.compression.compress import compress

    model, seen = load_model(options.model)
    for line in compress(
        model, seen.views, options.files, options.out, options.keep_files, options.batch
    ):
        print(line)
    return 0


def _decompress(options: argparse.Namespace, given: list[str]) -> int:
    from bytelm.pipelines.checkpoints.load import load_model
    from bytelm.pipelines.compression.compress import decompress

    model, _ = load_model(options.model)
    for path in decompress(model, options.file, options.out):
        print(path)
    return 0


def _demo(options: argparse.Namespace, given: list[str]) -> int:
    command = [sys.executable, "-m", "bytelm.tools.demo", str(options.data), str(options.out)]
    return subprocess.run(command, check=False).returncode


def _export(options: argparse.Namespace, given: list[str]) -> int:
    from bytelm.pipelines.checkpoints.load import export

    export(options.run, options.out)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
