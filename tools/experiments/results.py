"""The whole table of results by one command: JSON lines, and a page of tables.

    python -m bytelm.tools.experiments.results --small|--full --work DIR [--only PART,...]
        [--kind FOLDER]... [FOLDER ...]

FOLDERs are as for `quality_table.py`: the demo's files by default. The parts are

    quality   `quality_table.py`: our models beside other byte models after equal time
    val       a model trained on the FOLDERs for M minutes, on all of their `val`: alone, mixing in
              its output, and learning while it scores, with its weights counted too, beside codecs
              of each file and of whole archives
    kinds     the demo's model on kinds of files that are not in its sets (`other_kinds.py`, or each
              `--kind FOLDER`), in the same ways, beside codecs of each file
    samples   bits of what the demo's model draws at temperature 1 beside those of real files, by
              steps of training (`sampling.py`)
    scaling   `scaling.py`: bits per byte against training FLOPs

`--small` takes some minutes on two cores and shows that all of it runs; `--full` about eight hours.
Finished figures are kept in DIR, and the same command continues after a stop; another version of
the code needs another DIR. What this machine lacks (a package, other models) is named; the exit
status is 1 if a command failed.

Prints a JSON line a figure and writes DIR/results.md. Names and references of `quality` and
`scaling` are those of the scripts. All others are bits/byte:

    val/SET/MODALITY/COLUMN         `reference` is the best codec's of single files (`STRONGEST`)
    kinds/KIND/MODALITY/COLUMN      the same; COLUMN is network, mixed, adapted, or a codec
    samples/MODALITY/STEPS/drawn    bits that the model gives what it drew; `reference` is what it
                                    gives real files; `taken for real` is the share of a
                                    classifier of colours, edges, levels and pitch
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from bytelm.modalities import MODALITIES
from bytelm.pipelines.evaluation import ADAPT, PLAIN
from bytelm.pipelines.evaluation.codec_sizes import missing_codecs
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.runtime.optional_packages import can_import
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.storage.files import write_atomic
from bytelm.tools.benchmarks.measure import Figure
from bytelm.tools.benchmarks.peers import PEERS
from bytelm.tools.experiments.command_line import add_folders, add_work
from bytelm.tools.experiments.corpora import prepare_sets
from bytelm.tools.experiments.models import SEARCH_SPACES
from bytelm.tools.experiments.other_kinds import FolderKind, Kind, kind_set, recorded_kinds
from bytelm.tools.experiments.result_cells import (
    Cells,
    FigureDict,
    experiment_figures,
)
from bytelm.tools.experiments.result_tables import results_page
from bytelm.tools.experiments.set_archives import archive_sizes, missing_archivers
from bytelm.tools.experiments.trained_models import (
    TrainedModel,
    demo_model,
    demo_sets,
    model_of_minutes,
)

SPLIT = "val"
PEER_MODULES = {"megabyte-pytorch": "MEGABYTE_pytorch", "mblm": "mblm"}
PEERS_REMEDY = "pip install 'bytelm[bench]'"
STRONGEST = {"xz", "PPMd", "WebP", "JPEG XL e9", "FLAC", "WavPack"}
"""Codecs of single files, the best of which is the reference; brotli brings a dictionary along."""
FIRST_WAY = "network"
WAYS = {FIRST_WAY: (False, PLAIN), "mixed": (True, PLAIN), "adapted": (True, ADAPT)}
"""Ways to use a model: whether its output is mixed, and how it is scored."""


@dataclass(frozen=True)
class Scale:
    """Lengths of the trainings and numbers of samples."""

    quality: tuple[str, ...]
    """Options of `quality_table.py`."""
    scaling: tuple[str, ...]
    val_minutes: float
    demo_steps: int
    kinds: int
    """Recorded kinds of each modality."""
    prompts: int
    """Files of each modality that are continued."""


SMALL = Scale(
    quality=("--minutes", "0.1", "--seeds", "1", "--search-fraction", "0.1"),
    scaling=("--minutes", "0.4", "--seeds", "0"),
    val_minutes=1.0,
    demo_steps=30,
    kinds=1,
    prompts=6,
)
FULL = Scale(
    quality=("--minutes", "3", "--seeds", "2", "--search-fraction", "0.1667"),
    scaling=("--minutes", "20", "--seeds", "0,1"),
    val_minutes=60.0,
    demo_steps=1_500,
    kinds=20,
    prompts=16,
)


@dataclass(frozen=True)
class Task:
    """The parts, kinds and folders that the command line asks for."""

    work: Path
    scale: Scale
    folders: list[Path]
    kinds: Sequence[Kind]
    cells: Cells


def main() -> None:
    """Make what is missing, print it, and write the page."""
    parser = _parser()
    options = parser.parse_args()
    parts = options.only.split(",")
    for part in parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}: choose from {', '.join(PARTS)}")
    for folder in [*options.folders, *options.kind]:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
    console = Console(stderr=True, highlight=False)
    cells = Cells(options.work / "cells", console)
    cells.absent |= missing_codecs(MODALITIES) | missing_archivers()
    scale = FULL if options.full else SMALL
    own_kinds = [FolderKind(folder) for folder in options.kind]
    task = Task(
        options.work, scale, options.folders, own_kinds or recorded_kinds(scale.kinds), cells
    )
    figures: list[FigureDict] = []
    for part in parts:
        for figure in PARTS[part](task):
            print(json.dumps(figure), flush=True)
            figures.append(figure)
        page = results_page(figures, cells.absent)
        write_atomic(options.work / "results.md", page.encode())
    console.print(options.work / "results.md")
    if cells.absent:
        console.print(f"without {', '.join(cells.absent)}; the same command tries them again")
    sys.exit(cells.has_failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The whole table of results.")
    add_folders(parser)
    add_work(parser)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--small", action="store_true", help="short trainings, a few minutes")
    length.add_argument("--full", action="store_true", help="the trainings of the record, hours")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,...", help="parts to make")
    parser.add_argument(
        "--kind",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="a kind of one's own, in place of the recorded ones; may be given several times",
    )
    return parser


# --- other experiments ---


def _quality(task: Task) -> Iterator[FigureDict]:
    missing = [peer for peer in PEERS if not can_import(PEER_MODULES[peer])]
    for peer in missing:
        task.cells.absent[f"quality/{peer}"] = PEERS_REMEDY
    names = [name for name in SEARCH_SPACES if name not in missing]
    arguments = [*task.scale.quality, "--only", ",".join(names)]
    yield from _experiment(task, "quality", "quality_table", arguments)


def _scaling(task: Task) -> Iterator[FigureDict]:
    yield from _experiment(task, "scaling", "scaling", list(task.scale.scaling))


def _experiment(
    task: Task, part: str, module: str, arguments: Sequence[str]
) -> Iterator[FigureDict]:
    """The figures of another experiment on the folders; it keeps its runs by itself."""
    folders = [str(folder) for folder in task.folders]
    words = [*folders, "--work", str(task.work / part), *arguments]
    make = partial(experiment_figures, module, *words)
    yield from task.cells.figures(part, [*folders, *arguments], make)


# --- one model on sets ---


def _val(task: Task) -> Iterator[FigureDict]:
    """The model of the folders on their `val`."""
    sets = prepare_sets(task.folders, task.work, task.cells.console)
    paths = [task.work / "sets" / name for name in sets]
    for path in paths:
        name, root = f"val/{path.name}", sets[path.name].root
        for way in WAYS:
            make = partial(_val_scores, task, paths, path, way)
            yield from task.cells.figures(f"{name}/{way}", [root, task.scale.val_minutes], make)
        yield from task.cells.figures(f"{name}/archives", [root], partial(_archives, name, path))


def _val_scores(task: Task, paths: Sequence[Path], path: Path, way: str) -> list[FigureDict]:
    model = model_of_minutes(task.work, paths, task.scale.val_minutes)
    return _scores(f"val/{path.name}", way, model, path)


def _kinds(task: Task) -> Iterator[FigureDict]:
    """The demo's model on other kinds."""
    for kind in task.kinds:
        for way in WAYS:
            name, made_from = f"kinds/{kind.name}/{way}", [kind.source, task.scale.demo_steps]
            yield from task.cells.figures(name, made_from, partial(_kind_scores, task, kind, way))


def _kind_scores(task: Task, kind: Kind, way: str) -> list[FigureDict]:
    path = kind_set(kind, task.work, task.cells.console)
    model = demo_model(task.work, task.scale.demo_steps)
    return _scores(f"kinds/{kind.name}", way, model, path)


def _scores(name: str, way: str, model: TrainedModel, shard_set: Path) -> list[FigureDict]:
    """Figures of a model on a set's `val`, used one of the WAYS; the first has codecs' too."""
    is_mixing, scoring = WAYS[way]
    location = model.run if is_mixing else model.network
    evaluation = evaluate(location, [str(shard_set)], SPLIT, 1, "auto", scoring)
    figures: list[FigureDict] = []
    for modality, codecs in evaluation.codecs.items():
        best = min(STRONGEST & codecs.keys(), key=codecs.__getitem__)
        scores = evaluation.model[modality]
        details = {"bytes": int(scores["payload_bytes"]), "best_codec": best}
        with_weights = evaluation.with_weights[modality]["bits_per_byte"]
        values = {way: scores["bits_per_byte"], f"{way}, weights counted": with_weights}
        if way == FIRST_WAY:
            values |= codecs
        for column, value in values.items():
            full = f"{name}/{modality}/{column}"
            figures.append(Figure(full, value, "bits/byte", codecs[best], details).as_dict())
    return figures


def _archives(name: str, path: Path) -> list[FigureDict]:
    """Figures of a set's `val` in one archive."""
    shard_set = ShardSet(path)
    counts = shard_set.counts(SPLIT).bytes
    (modality,) = [modality for modality in MODALITIES if counts[modality]]
    return [
        Figure(f"{name}/{modality}/{codec}", 8 * size / counts[modality], "bits/byte").as_dict()
        for codec, size in archive_sizes(shard_set, SPLIT).items()
    ]


# --- samples ---


def _samples(task: Task) -> Iterator[FigureDict]:
    """Figures of draws by the demo's model, at each of its checkpoints."""
    steps = task.scale.demo_steps
    for modality in MODALITIES:
        name = f"samples/{modality}"
        made_from = [steps, task.scale.prompts]
        yield from task.cells.figures(name, made_from, partial(_sample_figures, task, modality))


def _sample_figures(task: Task, modality: str) -> Iterator[FigureDict]:
    """Bits of drawn files, and the share that a classifier takes for real, beside real ones."""
    (data,) = [path for path in demo_sets(task.work) if path.name == modality]
    for step, model in demo_model(task.work, task.scale.demo_steps).by_step().items():
        arguments = ["--data", data, "--modality", modality, "--prompts", task.scale.prompts]
        settings = ["--settings", '[{"temperature": 1.0}]']
        printed = experiment_figures("sampling", model, *arguments, *settings)
        by_name = {figure["name"].split("/")[-1]: figure for figure in printed}
        name, bits = f"samples/{modality}/{step}", by_name["bits"]
        drawn, real = bits["value"], bits["reference"]
        yield Figure(f"{name}/drawn", drawn, "bits/byte", real).as_dict()
        if "taken" in by_name:
            yield Figure(f"{name}/taken for real", by_name["taken"]["value"], "").as_dict()


PARTS: dict[str, Callable[[Task], Iterator[FigureDict]]] = {
    "quality": _quality,
    "val": _val,
    "kinds": _kinds,
    "samples": _samples,
    "scaling": _scaling,
}


if __name__ == "__main__":
    main()
