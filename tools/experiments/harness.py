"""The runs of the quality table: each entrant trained for a time or for a number of FLOPs, scored
on `val`, and kept.

    WORK/sets/NAME     the shard set of a folder
    WORK/runs/*.json   one file a finished run: what it was, and what came out

A run whose file is there is not run again; one that was stopped begins anew. All entrants read the
same rows in the same order, one row a step; seeds decide the start of the weights and dropout.

    B rows, here 1    T ids in a row
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Generic, Literal, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn

from bytelm.modalities import MODALITIES
from bytelm.pipelines.config import OptimizerConfig
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import EvaluationRows, TrainingRows
from bytelm.pipelines.evaluation.scoring import Scores, score
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.runtime.device import autocast, this_device
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.storage.files import write_atomic
from bytelm.tools.experiments.entrants import Entrant, Entry, Settings, precision

S = TypeVar("S")

WARMUP = 0.05
"""Share of the time over which learning rates rise."""
SEARCH_ROWS = 8
"""Rows of each set's `val` that a run of the search scores."""


@dataclass(frozen=True)
class Budget:
    """How long a training lasts: by the clock, or by its arithmetic."""

    amount: float
    unit: Literal["seconds", "FLOPs"] = "seconds"

    def times(self, factor: float) -> Budget:
        """So many times as much."""
        return replace(self, amount=factor * self.amount)

    def __str__(self) -> str:
        return f"{self.amount / 60:g} min" if self.unit == "seconds" else f"{self.amount:.3g} FLOPs"


@dataclass(frozen=True)
class Run(Generic[S]):
    """One training and its scoring."""

    entrant: str
    settings: S
    """A dataclass that says what is built, and in a few words with `str`."""
    budget: Budget
    seed: int = 0
    val_rows: int | None = None
    """Rows of each set's `val` that are scored; None scores all."""


@dataclass(frozen=True)
class Result:
    """What came out of a run."""

    nats: dict[str, float]
    """-Σ log p of the payload bytes of each set."""
    payload_bytes: dict[str, int]
    steps: int
    skipped: int
    """Steps whose gradient was not finite, and was dropped."""
    parameters: int
    scoring_seconds: float

    def bits_per_byte(self, sets: Iterable[str]) -> float:
        """Of all bytes of the sets together."""
        nats = bytes_ = 0.0
        for name in sets:
            nats += self.nats[name]
            bytes_ += self.payload_bytes[name]
        return nats / (math.log(2) * bytes_)


class Corpora:
    """The sets that all entrants are trained and scored on, in rows of one length."""

    def __init__(self, sets: Mapping[str, ShardSet], config: PlanConfig) -> None:
        """ValueError for a set that holds more than one modality, or has no `val`."""
        self.config = config
        modality_of = {name: _modality(name, shard_set) for name, shard_set in sets.items()}
        self.by_modality = {
            m: [name for name in sets if modality_of[name] == m]
            for m in MODALITIES
            if m in modality_of.values()
        }
        sources = [
            Source(shard_set, "train", 1 / len(self.by_modality[modality_of[name]]))
            for name, shard_set in sets.items()
        ]
        self.train = Plan(sources, self.config)
        """Modalities in equal bytes, and so the sets of one modality."""
        self.val = {name: Plan([Source(s, "val")], self.config) for name, s in sets.items()}

    def val_bytes(self) -> int:
        """Payload bytes of all of `val`."""
        return sum(sum(plan.source_bytes) for plan in self.val.values())


def prepare_sets(folders: Sequence[Path], work: Path, console: Console) -> dict[str, ShardSet]:
    """A shard set of each folder, by the folder's name; those that are there are kept.

    Raises ValueError for two folders of one name, and as `prepare` does.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"two folders have the same name ({', '.join(names)}): rename one")
    sets = {}
    for name, folder in zip(names, folders, strict=True):
        out = work / "sets" / name
        prepare([folder], out, PrepareOptions(), console)
        sets[name] = ShardSet(out)
    return sets


def _modality(name: str, shard_set: ShardSet) -> str:
    held = [m for m in MODALITIES if any(shard.bytes[m] for shard in shard_set.shards)]
    if len(held) != 1:
        raise ValueError(
            f"{name} holds {' and '.join(held)}, and modalities are mixed in equal bytes by set: "
            "give a folder for each modality"
        )
    return held[0]


def experiment_parser(description: str, minutes: float) -> argparse.ArgumentParser:
    """The options of an experiment whose seeds may run beside each other."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--work", type=Path, required=True, help="keeps sets and finished runs")
    add_budget(parser, minutes)
    parser.add_argument("--seeds", type=_numbers, default="0,1", help="with commas")
    return parser


def add_budget(parser: argparse.ArgumentParser, minutes: float) -> None:
    """The options that say how long a training lasts."""
    parser.add_argument("--minutes", type=float, default=minutes, help="of each training")
    parser.add_argument("--flops", type=float, help="of each training, whatever time it takes")


def budget(options: argparse.Namespace) -> Budget:
    """As the options say."""
    if options.flops is not None:
        return Budget(options.flops, "FLOPs")
    return Budget(60 * options.minutes)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


class Ledger(Generic[S]):
    """The runs that are finished, and the way to finish more."""

    def __init__(
        self,
        folder: Path,
        corpora: Corpora,
        build: Callable[[str, S, int], Entrant],
        console: Console,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            build: an entrant from its name, its settings and T.
            clock: seconds, by which a run lasts that has a time.
        """
        self.folder = folder
        self.corpora = corpora
        self.build = build
        self.console = console
        self.clock = clock

    def result(self, run: Run[S]) -> Result:
        """Of a run: from its file, or else by running it and writing the file."""
        path = self._path(run)
        if path.exists():
            return Result(**json.loads(path.read_text("utf-8"))["result"])
        result = self._finish(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"run": asdict(run), "result": asdict(result)}
        write_atomic(path, json.dumps(content, indent=1).encode())
        self._tell(run, result)
        return result

    def _path(self, run: Run[S]) -> Path:
        """Named by all that decides the run, its data and precision too."""
        decides = json.dumps([asdict(run), self.corpora.train.hash, precision()], sort_keys=True)
        return (
            self.folder / f"{run.entrant}-{hashlib.sha256(decides.encode()).hexdigest()[:16]}.json"
        )

    def _finish(self, run: Run[S]) -> Result:
        torch.manual_seed(run.seed)
        context = self.corpora.config.row_length
        entrant = self.build(run.entrant, run.settings, context)
        steps, skipped = train(entrant, self.corpora.train, run.budget, self.clock)
        began = time.perf_counter()
        nats, payload_bytes = score_sets(entrant, self.corpora.val, run.val_rows)
        return Result(
            nats,
            payload_bytes,
            steps,
            skipped,
            parameters=sum(p.numel() for p in entrant.model.parameters()),
            scoring_seconds=time.perf_counter() - began,
        )

    def _tell(self, run: Run[S], result: Result) -> None:
        figures = "  ".join(
            f"{m} {result.bits_per_byte(names):.3f}"
            for m, names in self.corpora.by_modality.items()
        )
        skipped = f", {result.skipped} skipped" if result.skipped else ""
        self.console.print(
            f"{describe(run)}: {figures}  ({result.steps} steps{skipped}, scored in "
            f"{result.scoring_seconds:.0f} s)",
            highlight=False,
            soft_wrap=True,
        )


def describe(run: Run[S]) -> str:
    """A run in a few words."""
    return f"{run.entrant}{run.settings}, {run.budget}, seed {run.seed}"


def rate(share: float) -> float:
    """The share of the learning rates after a share of the time: up linearly, then down to 0."""
    return min(share / WARMUP, (1 - share) / (1 - WARMUP))


def train(
    entrant: Entrant, plan: Plan, budget: Budget, clock: Callable[[], float]
) -> tuple[int, int]:
    """Train for a budget, one row a step; returns steps and those skipped.

    Learning rates follow the share of it that is spent, so that the decay ends with it on any
    machine. The step that would end after the time is left out, and FLOPs are rounded to steps.
    """
    device = this_device()
    model, optimizer = entrant.model.train(), entrant.optimizer
    rows = TrainingRows(plan, (0, 0), 1, 1, 0, 1)
    workers = 0 if device.type == "cpu" else 1  # on a GPU, the processor is free for it
    batches = make_loader(plan, rows, workers, codec_features=entrant.codec_features)
    is_timed = budget.unit == "seconds"
    row_flops = 0.0 if is_timed else entrant.row_flops(plan.config.row_length)
    steps = skipped = 0
    began = clock()
    for batch in batches:
        with autocast(device, precision()):
            loss = entrant.loss(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), OptimizerConfig.max_grad_norm)
        spent = clock() - began if is_timed else (steps + 0.5) * row_flops
        share = spent / budget.amount
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(share) * group["peak"]
        if norm.isfinite():
            optimizer.step()
        else:
            skipped += 1
        optimizer.zero_grad()
        steps += 1
    return steps, skipped


@torch.no_grad()
def score_sets(
    entrant: Entrant, plans: Mapping[str, Plan], rows: int | None
) -> tuple[dict[str, float], dict[str, int]]:
    """Nats and number of the payload bytes of each set, by `pipelines/evaluate.py`.

    rows: of each set's first rows at most so many; None scores all.
    """
    entrant.model.eval()

    def nats_of(batch: Batch) -> Tensor:
        with autocast(this_device(), precision()):
            return entrant.nats(batch).cpu()

    nats, payload_bytes = {}, {}
    for name, plan in plans.items():
        count = plan.rows(0) if rows is None else min(rows, plan.rows(0))
        scores = Scores()
        loader = make_loader(plan, EvaluationRows(count, 1, 0, 1), workers=0)
        score(scores, nats_of, loader, plan.config.patch)
        heads = scores.heads.values()
        nats[name] = sum(head.nats["payload"] for head in heads)
        payload_bytes[name] = sum(head.counts["payload_bytes"] for head in heads)
    return nats, payload_bytes


def figures(
    prefix: str,
    results: Mapping[str, Sequence[Result]],
    corpora: Corpora,
    references: Iterable[str],
) -> Iterator[dict[str, Any]]:
    """One for each modality and entrant, and for each set of a modality that has several.

    references: the entrants whose best mean is the reference.
    """
    parts = dict(corpora.by_modality)
    for sets in corpora.by_modality.values():
        if len(sets) > 1:
            parts |= {name: [name] for name in sets}
    for part, sets in parts.items():
        bits = {name: [r.bits_per_byte(sets) for r in of] for name, of in results.items()}
        peers = [fmean(bits[name]) for name in references if name in bits]
        reference = min(peers) if peers else None
        for name, values in bits.items():
            value = fmean(values)
            yield {
                "name": f"{prefix}/{part}/{name}",
                "value": value,
                "unit": "bits/byte",
                "reference": reference,
                "ratio": value / reference if reference else None,
                "spread": stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
            }


def search(ledger: Ledger[Settings], entrant: str, entry: Entry, budget: Budget) -> Settings:
    """The best settings of an entrant, one axis after the other: size, learning rate, rotary.

    Best is the lowest mean over modalities of bits per byte.
    """

    def mean_bits(settings: Settings) -> float:
        result = ledger.result(Run(entrant, settings, budget, val_rows=SEARCH_ROWS))
        mean = fmean(map(result.bits_per_byte, ledger.corpora.by_modality.values()))
        return mean if math.isfinite(mean) else math.inf

    axes: list[list[dict[str, Any]]] = [
        [dict(zip(("width", "layers", "patch"), size, strict=True)) for size in entry.sizes],
        [{"lr": lr} for lr in entry.lrs],
        [{"rotary": rotary} for rotary in entry.rotary],
    ]
    best = Settings(*entry.sizes[0], entry.lrs[0], entry.rotary[0])
    for axis in axes:
        best = min((replace(best, **change) for change in axis), key=mean_bits)
    return best


def search_runs(entry: Entry) -> int:
    """Number of runs of a search."""
    return len(entry.sizes) + len(entry.lrs) - 1 + len(entry.rotary) - 1
