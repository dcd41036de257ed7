"""One run as its report shows it: sentences, tiles, charts, tables and lists of facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from markupsafe import Markup

from bytelm.pipelines.evaluation.table import codecs_by_version
from bytelm.pipelines.reporting.bit_maps import draw_map
from bytelm.pipelines.reporting.charts import Chart
from bytelm.pipelines.reporting.config_lines import ConfigLine, config_lines
from bytelm.pipelines.reporting.cost import Cost, is_running, run_cost
from bytelm.pipelines.reporting.report_tables import (
    ReportTable,
    bits,
    codec_tables,
    document_table,
    figure_table,
    pair_table,
    result_table,
)
from bytelm.pipelines.reporting.run_charts import run_charts
from bytelm.pipelines.reporting.run_data import RunData
from bytelm.pipelines.runtime.progress import duration
from bytelm.pipelines.shards.set_summary import content_lines, size_text, split_lines

TOTAL = "total"
ANOMALIES_SHOWN = 20
Facts = Sequence[tuple[str, str]]
_UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))


@dataclass(frozen=True)
class Tile:
    """A large number with what it says."""

    label: str
    value: str
    remark: str


@dataclass(frozen=True)
class MapView:
    """A map of an evaluation, drawn."""

    title: str
    picture: Markup


@dataclass(frozen=True)
class ModalityMaps:
    """The maps of one modality."""

    drawn: Sequence[MapView]
    note: str
    """Names the maps that are not drawn, since all bytes are in one bin."""


@dataclass(frozen=True)
class SetView:
    """A set of a run in words."""

    path: str
    lines: Sequence[str]


@dataclass(frozen=True)
class MediaSection:
    """A section of samples or of surprise maps."""

    anchor: str
    title: str
    html: Markup


@dataclass
class RunView:
    """Everything that the page and the summary say of one run."""

    data: RunData
    evaluation: dict[str, Any] | None
    cost: Cost
    sentence: str
    tiles: list[Tile]
    charts: list[Chart]
    tables: list[ReportTable]
    codecs: list[ReportTable]
    documents: ReportTable | None
    maps: dict[str, ModalityMaps]
    config: list[ConfigLine]
    sets: list[SetView]
    cost_facts: Facts
    machine_facts: Facts
    anomalies: list[str]
    missing: list[str]
    media: list[MediaSection] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.data.name


def view_run(
    data: RunData,
    evaluation: dict[str, Any] | None,
    missing: Sequence[str] = (),
    media: Sequence[MediaSection] = (),
) -> RunView:
    """Prepare one run for its report.

    Args:
        evaluation: as `bytelm evaluate --json` prints it; None if there is none.
        missing: further lines about what is not shown.
        media: sections of samples and surprise maps.
    """
    cost = run_cost(data)
    codecs = evaluation.get("codecs", {}) if evaluation else {}
    result = evaluation["model"] if evaluation else _last_evaluation(data)
    tables = [result_table(evaluation), figure_table(evaluation)] if evaluation else []
    pairs = pair_table(evaluation) if evaluation else None
    return RunView(
        data=data,
        evaluation=evaluation,
        cost=cost,
        sentence=_sentence(data, cost, result, codecs),
        tiles=_tiles(result, evaluation, codecs),
        charts=run_charts(data, codecs),
        tables=[table for table in (*tables, pairs) if table and table.rows],
        codecs=codec_tables(evaluation) if evaluation else [],
        documents=document_table(evaluation) if evaluation else None,
        maps=_maps(evaluation) if evaluation else {},
        config=config_lines(data.config),
        sets=[_set_view(s.path, s.report) for s in data.sets],
        cost_facts=_cost_facts(cost, data),
        machine_facts=_machine_facts(data.sessions),
        anomalies=_anomaly_lines(data),
        missing=[*data.missing, *missing],
        media=list(media),
    )


def evaluation_note(evaluation: Mapping[str, Any]) -> str:
    """A line that says how the evaluation scored, and how many documents."""
    about = evaluation["about"]
    words = [f"step {about['step']:,}"] if about.get("step") is not None else []
    words += [f"split {about.get('split')}", f"{about.get('scoring')} scoring"]
    words.append(str(about.get("precision")))
    if about.get("limit"):
        words.append(f"{about['documents']:,} of {about['documents_in_split']:,} documents")
    return ", ".join(words)


def codecs_note(evaluation: Mapping[str, Any]) -> str:
    """The tools and libraries behind the codecs' figures, and the codecs that have none."""
    sentences = []
    if versions := evaluation.get("codec_versions"):
        sentences.append(f"Codecs by {codecs_by_version(versions)}.")
    if missing := evaluation.get("codecs_missing"):
        listed = "; ".join(f"{codec} ({how})" for codec, how in missing.items())
        sentences.append(f"Not measured: {listed}.")
    return " ".join(sentences)


def _last_evaluation(data: RunData) -> dict[str, dict[str, float]]:
    """Bits per byte of the last evaluation in the metrics, by modality."""
    ending = "/bits_per_byte"
    return {
        key.removesuffix(ending): {"bits_per_byte": float(column[-1])}
        for key, column in data.metrics.evaluations.items()
        if key.endswith(ending) and np.isfinite(column[-1])
    }


def _sentence(
    data: RunData,
    cost: Cost,
    result: Mapping[str, Mapping[str, float]],
    codecs: Mapping[str, Mapping[str, float]],
) -> str:
    """The run and its result in one sentence."""
    size = f" of {cost.parameters:,} parameters" if cost.parameters else ""
    length = f"{cost.steps:,} of {cost.planned_steps:,} steps" if cost.planned_steps else "0 steps"
    if cost.steps == cost.planned_steps:
        length = f"{cost.steps:,} steps"
    if cost.seconds:
        length += f" and {'about ' if cost.is_estimated else ''}{duration(cost.seconds)}"
    parts = []
    for name, figures in result.items():
        if name == TOTAL or figures.get("bits_per_byte") is None:
            continue
        best = _best_codec(codecs.get(name, {}))
        against = f" ({best[0]}, the best codec: {best[1]:.2f})" if best else ""
        parts.append(f"{figures['bits_per_byte']:.2f} bits per byte of {name}{against}")
    state = "is being trained or was stopped" if is_running(data) else "was trained"
    if not parts:
        return f"A model{size} that {state} for {length}; it has not been evaluated."
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"A model{size} that {state} for {length} needs {listed}."


def _best_codec(codecs: Mapping[str, float]) -> tuple[str, float] | None:
    known = [(name, value) for name, value in codecs.items() if value is not None]
    return min(known, key=lambda item: item[1], default=None)


def _tiles(
    result: Mapping[str, Mapping[str, float]],
    evaluation: Mapping[str, Any] | None,
    codecs: Mapping[str, Mapping[str, float]],
) -> list[Tile]:
    """Bits per byte of each modality, with its interval and the best codec."""
    intervals = evaluation.get("intervals", {}) if evaluation else {}
    tiles = []
    for name, figures in result.items():
        value = figures.get("bits_per_byte")
        remarks = [] if value is not None else ["not a number: the model diverged"]
        interval = intervals.get(name, {}).get("bits_per_byte")
        if interval:
            remarks.append(f"95 %: {interval[0]:.3f} to {interval[1]:.3f}")
        best = _best_codec(codecs.get(name, {}))
        if best and value is not None:
            change = value / best[1] - 1
            words = "fewer" if change < 0 else "more"
            remarks.append(f"{abs(change):.0%} {words} bits than {best[0]}, the best codec")
        tiles.append(Tile(f"{name}, bits per byte", bits(value), " · ".join(remarks)))
    return tiles


def _maps(evaluation: Mapping[str, Any]) -> dict[str, ModalityMaps]:
    """The maps of each modality that has some."""
    return {name: _modality_maps(maps) for name, maps in evaluation.get("maps", {}).items() if maps}


def _modality_maps(maps: Sequence[Mapping[str, Any]]) -> ModalityMaps:
    """Draw the maps that divide the bytes into two bins or more; a single bar says nothing."""
    drawn, single = [], []
    for bit_map in maps:
        filled = [n for n, size in enumerate(bit_map["bytes"]) if size]
        if len(filled) > 1:
            drawn.append(MapView(str(bit_map["title"]), draw_map(bit_map)))
        elif filled:
            label = bit_map["labels"][filled[0]]
            single.append(f"{bit_map['title']} ({label})" if label else str(bit_map["title"]))
    note = f"Not drawn, since all bytes are in one bin: {', '.join(single)}." if single else ""
    return ModalityMaps(drawn, note)


def _set_view(path: str, report: Mapping[str, Any] | None) -> SetView:
    if report is None:
        return SetView(path, ["cannot be read"])
    if "splits" not in report:  # a set that was made by other means than `prepare`
        return SetView(path, ["its manifest has no report of what was prepared"])
    return SetView(path, [*split_lines(report), *content_lines(report)])


def _cost_facts(cost: Cost, data: RunData) -> Facts:
    """The cost of a run in words."""
    facts = [("steps", f"{cost.steps:,} of {cost.planned_steps:,}")]
    if cost.seconds is not None:
        remark = " (from the throughput, without evaluations)" if cost.is_estimated else ""
        facts.append(("time", duration(cost.seconds) + remark))
    if cost.ids:
        facts.append(("read", f"{cost.ids:,} ids of context, padding included"))
    if cost.epoch is not None:
        facts.append(("passes over the data begun", f"{cost.epoch:,}"))
    if cost.parameters:
        facts.append(("parameters", f"{cost.parameters:,} ({size_text(2 * cost.parameters)} fp16)"))
    if cost.flops:
        facts.append(("computation", flops_text(cost.flops)))
    if cost.peak_memory:
        facts.append(("peak memory of rank 0", size_text(cost.peak_memory)))
    if cost.gpu_memory:
        facts.append(("peak memory of its GPU", size_text(cost.gpu_memory)))
    facts.append(("energy", "not measured"))
    if data.checkpoint_steps:
        shown = ", ".join(f"{step:,}" for step in data.checkpoint_steps[:8])
        facts.append(("checkpoints at steps", shown))
    return facts


def flops_text(flops: float) -> str:
    """A number of floating-point operations for people: `1.2 PFLOP`."""
    unit, name = next(((u, n) for u, n in _UNITS if flops >= u), (1e6, "MFLOP"))
    return f"{flops / unit:,.1f} {name}"


def _machine_facts(sessions: Sequence[Mapping[str, Any]]) -> Facts:
    """Versions and machine of the newest session, and when each session ran."""
    facts = [(f"session {n}", _session_text(s)) for n, s in enumerate(sessions, 1)]
    if not sessions:
        return facts
    newest = sessions[-1]
    machine, versions = newest.get("machine") or {}, newest.get("versions") or {}
    facts.append(("command", str(newest.get("command"))))
    ranks = newest.get("ranks")
    facts.append(("ranks", f"{ranks}, ZeRO {newest.get('zero_stage')}, {newest.get('precision')}"))
    if machine:
        facts.append(("system", str(machine.get("system"))))
        facts.append(
            ("processor", f"{machine.get('processor')}, {machine.get('cores')} cores usable")
        )
        facts.append(("memory", size_text(machine.get("memory_bytes") or 0)))
        facts.append(("GPUs", ", ".join(machine.get("gpus") or []) or "none"))
    facts += [(name, str(version)) for name, version in versions.items()]
    if newest.get("commit"):
        facts.append(("commit", str(newest["commit"])))
    return facts


def _session_text(session: Mapping[str, Any]) -> str:
    """When a session ran and which steps it took: `2026-11-28 21:00 UTC, 6 min, steps 0 to 9`."""
    try:
        started = datetime.fromisoformat(session["started"])
    except (KeyError, TypeError, ValueError):
        return "its start is unknown"
    text = f"{started:%Y-%m-%d %H:%M} UTC"
    if session.get("ended") is None:
        return f"{text}, from step {session.get('first_step')}, without an end (it runs or died)"
    seconds = (datetime.fromisoformat(session["ended"]) - started).total_seconds()
    first, last = session.get("first_step"), session.get("last_step")
    return f"{text}, {duration(seconds)}, steps {first:,} to {last:,}"


def _anomaly_lines(data: RunData) -> list[str]:
    """The first spikes, skipped updates and masked documents in words."""
    lines = []
    for record in data.metrics.anomalies[:ANOMALIES_SHOWN]:
        step = f"step {record['step']:,}: "
        if record["kind"] == "spike":
            lines.append(f"{step}loss {record['loss']:.3f}, the mean was {record['mean']:.3f}")
        elif record["kind"] == "skipped":
            documents = "; ".join(map(str, record.get("documents", [])))
            lines.append(f"{step}loss {record['loss']}, update skipped; documents: {documents}")
        else:
            lines.append(f"{step}masked {record['bytes']:,} bytes: {record['cause']}")
    left = len(data.metrics.anomalies) - len(lines)
    return [*lines, f"and {left:,} more in metrics.jsonl"] if left else lines
