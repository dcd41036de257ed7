"""The content of a run's folder for a report: config, metrics, checkpoints, sessions and sets.

Nothing in a run's folder is required. What is missing or cannot be read is said in `missing`, and
the report shows the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.pipelines.checkpoints.run_folder import checkpoint_folders, saved_config
from bytelm.pipelines.errors import cause_of
from bytelm.pipelines.shards.reader import ShardSet, open_set
from bytelm.pipelines.training.metrics_logger import METRICS
from bytelm.pipelines.training.sessions import read_sessions

Columns = dict[str, npt.NDArray[np.float64]]


@dataclass
class Metrics:
    """The metrics of a run, by kind."""

    train: Columns = field(default_factory=dict)
    """[records] of each figure, `step` among them; bits per byte of a modality as
    `bits_per_byte/text`. NaN where a record lacks the figure."""
    evaluations: Columns = field(default_factory=dict)
    """[evaluations] of each figure, as `text/bits_per_byte`."""
    anomalies: list[dict[str, Any]] = field(default_factory=list)
    """Records of kinds `spike`, `skipped` and `damage`."""
    unreadable: int = 0
    """Lines that are no record."""

    @property
    def last_step(self) -> int:
        """The last step with a record; 0 without one."""
        steps = [c["step"] for c in (self.train, self.evaluations) if "step" in c]
        return int(max((s.max() for s in steps if s.size), default=0))


@dataclass(frozen=True)
class SetFacts:
    """A shard set of a run: its config entry, and the report of `prepare` if it can be read."""

    path: str
    weight: float | None
    report: dict[str, Any] | None
    root: str
    """The root hash; empty where the set cannot be read."""
    val_documents: int = 0
    val_bytes: dict[str, int] = field(default_factory=dict)
    """Stored bytes of `val` by modality, of those that have some."""


@dataclass(frozen=True)
class RunData:
    """A run as its folder describes it."""

    folder: Path
    name: str
    """A short name for people."""
    config: dict[str, Any]
    """The resolved config in plain values; empty if it is missing."""
    metrics: Metrics
    checkpoint_steps: list[int]
    """Steps of the checkpoints, newest first."""
    sessions: list[dict[str, Any]]
    sets: list[SetFacts]
    missing: list[str]
    """A line for each thing that the folder should hold and does not."""

    @property
    def steps(self) -> int:
        """Steps that the config asks for; 0 if unknown."""
        steps = section(self.config, "train").get("steps", 0)
        return steps if isinstance(steps, int) else 0


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a config in plain values; empty if it is missing."""
    values = config.get(name)
    return values if isinstance(values, dict) else {}


def read_run(folder: Path) -> RunData:
    """Read a run's folder.

    Raises:
        ValueError: if the folder is missing or holds nothing of a run.
    """
    if not folder.is_dir():
        raise ValueError(f"no run at {folder}: give the folder that `bytelm train --out` wrote")
    config = saved_config(folder) or {}
    checkpoints = [step for step, _ in checkpoint_folders(folder)]
    path = folder / METRICS
    if not (config or checkpoints or path.is_file()):
        raise ValueError(
            f"{folder} holds no run (no config, metrics or checkpoints): give the folder that "
            "`bytelm train --out` wrote"
        )
    missing = []
    if not config:
        missing.append("config.json is missing or cannot be read: no config and no data below")
    metrics = Metrics()
    if path.is_file():
        metrics = read_metrics(path)
    else:
        missing.append(f"{METRICS} is missing: no curves below")
    if metrics.unreadable:
        missing.append(f"{metrics.unreadable:,} lines of {METRICS} cannot be read: left out")
    sessions = read_sessions(folder)
    if not sessions:
        missing.append(
            "environment.json is missing (this run is of an older version, or has not started): "
            "versions, machine and exact duration are unknown"
        )
    sets, set_problems = _read_sets(config)
    return RunData(
        folder,
        _short_name(folder),
        config,
        metrics,
        checkpoints,
        sessions,
        sets,
        missing + set_problems,
    )


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read several runs, with names that differ. Raises ValueError as `read_run` does."""
    runs = [read_run(folder) for folder in folders]
    names = Counter(run.name for run in runs)
    return [replace(r, name=str(r.folder)) if names[r.name] > 1 else r for r in runs]


def read_metrics(path: Path) -> Metrics:
    """Read the metrics of a run, which may be written at the same time."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    unreadable = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
                int(record["step"])
                kinds.setdefault(record["kind"], []).append(record)
            except (ValueError, KeyError, TypeError):
                unreadable += line.endswith("\n")  # a line without an end is being written
    anomalies = [r for kind in ("spike", "skipped", "damage") for r in kinds.get(kind, [])]
    anomalies.sort(key=lambda record: record["step"])
    return Metrics(
        _columns(kinds.get("train", [])), _columns(kinds.get("eval", [])), anomalies, unreadable
    )


def _short_name(folder: Path) -> str:
    """The folder's name, with that of its parent where the folder is called `run`."""
    resolved = folder.resolve()
    return f"{resolved.parent.name}/run" if resolved.name == "run" else resolved.name


def _columns(records: list[dict[str, Any]]) -> Columns:
    """Records as arrays; a figure inside another one has the name `outer/inner`."""
    columns: Columns = {}
    for row, record in enumerate(records):
        for name, value in record.items():
            nested = value if isinstance(value, dict) else {"": value}
            for inner, number in nested.items():
                if isinstance(number, int | float):
                    key = f"{name}/{inner}" if inner else name
                    if key not in columns:
                        columns[key] = np.full(len(records), np.nan)
                    columns[key][row] = number
    return columns


def _read_sets(config: dict[str, Any]) -> tuple[list[SetFacts], list[str]]:
    """The sets of a config, and a line for each one that cannot be read."""
    sets, problems = [], []
    entries = section(config, "data").get("sets")
    for entry in entries if isinstance(entries, list) else []:
        path = str(entry.get("path"))
        facts = SetFacts(path, entry.get("weight"), None, "")
        try:
            facts = _set_facts(facts, open_set(path))
        except Exception as error:
            # A set may be gone, damaged, or on a host that does not answer, each with an error of
            # its own library. The report says so and shows the rest.
            problems.append(f"set {path} cannot be read ({cause_of(error)}): its data is not shown")
        sets.append(facts)
    return sets, problems


def _set_facts(entry: SetFacts, shard_set: ShardSet) -> SetFacts:
    """An entry of a config with what its set tells."""
    shards = shard_set.split("val")
    sizes: Counter[str] = Counter()
    for shard in shards:
        sizes.update(shard.bytes)
    return replace(
        entry,
        report=shard_set.report,
        root=shard_set.root,
        val_documents=sum(shard.documents for shard in shards),
        val_bytes={name: size for name, size in sizes.items() if size},
    )
