"""Metrics of a run in its folder and for its trackers, and its progress on the terminal.

RUN/metrics.jsonl    a line for each record: train, eval, damage, spike, skipped
RUN/results.csv      a row for each evaluation: step, and bits per byte of each modality
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bytelm.pipelines.checkpoints.train_state import LossMonitor, TrainState
from bytelm.pipelines.checkpoints.uploads import Upload
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.evaluation.scoring import bits_per_byte
from bytelm.pipelines.storage.files import write_atomic
from bytelm.pipelines.training.samples import Drawn
from bytelm.pipelines.training.step_statistics import StepStatistics
from bytelm.pipelines.training.trackers import Trackers

METRICS = "metrics.jsonl"
RESULTS = "results.csv"
PLAIN_SECONDS = 10.0
"""Seconds between lines of progress if stdout is no terminal."""


class MetricsLogger:
    """Writes the metrics of a run to its folder and its progress to stdout. Only rank 0 has one.

    On a terminal the progress is a bar, elsewhere a plain line every PLAIN_SECONDS.
    """

    def __init__(
        self, run: Path, config: RunConfig, steps: int, done: int, peak_step_seconds: float
    ):
        """Open the files of a run, and remove metrics of steps after `done`, which are lost.

        Args:
            config: of the run, with its trackers.
            steps: steps of the whole run.
            done: steps that an earlier process did and saved.
            peak_step_seconds: duration of a step at the peak FLOP/s of all devices, for MFU.
        """
        self.console = Console(highlight=False, markup=False)  # paths have brackets
        self._steps = steps
        self._done_before = done
        self._peak_step_seconds = peak_step_seconds
        path = run / METRICS
        lines = _lines_up_to(path, done)
        write_atomic(path, "".join(line + "\n" for line in lines).encode())
        self._file = open(path, "a")  # noqa: SIM115
        self._results = Results(run / RESULTS, lines)
        self._trackers = Trackers(config.trackers, run, config.to_dict(), done, self.print)
        self._progress = _progress_bar(self.console) if self.console.is_terminal else None
        if self._progress is not None:
            self._task = self._progress.add_task("", total=steps, completed=done, figures="")
            self._progress.start()
        self._start = time.monotonic()
        self._last_plain = 0.0
        self.restart_interval()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._file.close()
        self._trackers.close()

    def step(
        self, state: TrainState, statistics: StepStatistics, data_wait: float, is_due: bool
    ) -> None:
        """Count a training step, and record the figures since the last record if one is due.

        Args:
            state: after the step.
            data_wait: seconds that this rank waited for the step's data.
        """
        self._bytes += sum(statistics.payload_bytes.values())
        self._data_wait += data_wait
        self._interval_steps += 1
        for piece in statistics.damage:
            self._write("damage", state.step, {"bytes": piece.size, "cause": piece.cause})
            self.print(f"step {state.step}: masked {piece.size} bytes: {piece.cause}")
        if is_due:
            values = self._interval_values(state, statistics)
            self.restart_interval()
            self._record("train", state.step, values)
            self._show_progress(state.step, _figures(values))

    def set_steps(self, steps: int, done: int) -> None:
        """Show that the run has another number of steps, from step `done` on."""
        self.print(f"step {done}: {steps:,} steps fit the time, {self._steps:,} were planned")
        self._steps = steps
        if self._progress is not None:
            self._progress.update(self._task, total=steps)

    def spike(self, step: int, loss: float, loss_monitor: LossMonitor) -> None:
        """Record a loss that stands out, with mean and variance of the preceding ones."""
        self._write(
            "spike",
            step,
            {"loss": loss, "mean": loss_monitor.mean, "variance": loss_monitor.variance},
        )
        self.print(f"step {step}: loss {loss:.3f} is a spike, the mean is {loss_monitor.mean:.3f}")

    def skipped(self, step: int, statistics: StepStatistics, documents: Sequence[str]) -> None:
        """Record a step whose update was skipped, and the documents of its rows."""
        loss = str(statistics.loss)
        self._write("skipped", step, {"loss": loss, "documents": list(documents)})
        self.print(
            f"step {step}: loss {loss} or its gradient is not finite, the update is skipped; "
            f"documents: {'; '.join(documents)}"
        )

    def evaluation(self, step: int, metrics: dict[str, dict[str, float]]) -> None:
        """Record and show the metrics of an evaluation, by modality."""
        self._record("eval", step, metrics)
        self._results.add(step, metrics)
        parts = [f"{name} {m['bits_per_byte']:.3f}" for name, m in metrics.items()]
        self.print(f"step {step}: bits per byte on val: {'  '.join(parts)}")
        self.restart_interval()

    def checkpoint(self, folder: Path) -> None:
        """Show where a checkpoint was written."""
        step = int(folder.name.removeprefix("step-"))
        self.print(f"step {step}: checkpoint {folder}")

    def upload(self, upload: Upload) -> None:
        """Record the end of an upload, and show it."""
        step = int(upload.name.removeprefix("step-"))
        values = dataclasses.asdict(upload)
        self._write("upload", step, values)
        if upload.error:
            self.print(
                f"step {step}: the checkpoint could not be uploaded and stays local, the next one "
                f"is tried again: {upload.error}"
            )
        elif upload.size:
            self.print(f"step {step}: checkpoint uploaded in {upload.seconds:.1f} s")

    def samples(self, step: int, drawn: Drawn) -> None:
        """Record samples that were drawn, and show where they are."""
        if drawn.samples:
            self._trackers.samples(step, drawn.samples)
        self.print(drawn.message)
        self.restart_interval()

    def print(self, message: str) -> None:
        """Show a line, above the bar if there is one."""
        self.console.print(message, soft_wrap=True)

    def restart_interval(self) -> None:
        """Begin the interval of the next figures: it contains no evaluation, and no wait for a
        save."""
        self._interval_start = time.monotonic()
        self._bytes, self._data_wait, self._interval_steps = 0, 0.0, 0

    def _interval_values(self, state: TrainState, statistics: StepStatistics) -> dict[str, Any]:
        seconds = time.monotonic() - self._interval_start
        return {
            "loss": statistics.loss,
            "bits_per_byte": {
                name: bits_per_byte(nats, statistics.payload_bytes[name])
                for name, nats in statistics.payload_nats.items()
                if statistics.payload_bytes[name]
            },
            "lr": statistics.lr,
            "grad_norm": statistics.grad_norm,
            "skipped_steps": state.loss_monitor.skipped,
            "pad_ids": statistics.pad_ids,
            "bytes_per_second": self._bytes / seconds,
            "data_wait": self._data_wait / seconds,
            "mfu": self._interval_steps * self._peak_step_seconds / seconds,
            "epoch": state.epoch,
            "row": state.row - 1,  # of the step's last row
        }

    def _show_progress(self, step: int, figures: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=step, figures=figures)
        elif time.monotonic() - self._last_plain > PLAIN_SECONDS or step == self._steps:
            self._last_plain = time.monotonic()
            step_seconds = (self._last_plain - self._start) / (step - self._done_before)
            remaining = _minutes(step_seconds * (self._steps - step))
            self.print(f"step {step}/{self._steps}  {figures}  left {remaining}")

    def _record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write values to the metrics and to the trackers."""
        self._write(kind, step, values)
        numbers = {}
        for name, value in values.items():
            for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
                numbers["/".join(part for part in (kind, name, inner) if part)] = number
        self._trackers.log(step, numbers)

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        line = {"kind": kind, "step": step, **_without_nan(values)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()


class Results:
    """The bits per byte of each evaluation as a table that a spreadsheet opens."""

    def __init__(self, path: Path, lines: Sequence[str]) -> None:
        """Begin with the evaluations among a run's lines of metrics, so that both agree."""
        self._path = path
        self._rows: list[dict[str, float]] = []
        for values in map(json.loads, lines):
            if values.pop("kind") == "eval":
                self._append(values.pop("step"), values)
        self._write()

    def add(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Add a row."""
        self._append(step, metrics)
        self._write()

    def _append(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        bits = {f"{name}_bits_per_byte": m["bits_per_byte"] for name, m in metrics.items()}
        self._rows.append({"step": step, **bits})

    def _write(self) -> None:
        columns = dict.fromkeys(name for row in self._rows for name in row)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(columns) or ["step"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self._path, table.getvalue().encode())


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that JSON cannot express by None, at any depth."""
    return {
        name: _without_nan(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The lines of metrics up to a step."""
    text = path.read_text() if path.exists() else ""
    complete, _, _ = text.rpartition("\n")  # a killed process may leave part of a line after it
    return [line for line in complete.splitlines() if json.loads(line)["step"] <= step]


def _figures(values: dict[str, Any]) -> str:
    bits = values["bits_per_byte"]
    shown = "  ".join(f"{n} {v:.2f}" for n, v in bits.items() if not math.isnan(v))
    return (
        f"loss {values['loss']:.3f}  bits/byte {shown}  {values['bytes_per_second'] / 1e3:.1f} kB/s"
    )


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
