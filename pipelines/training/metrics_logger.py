"""What a run says of itself: JSON lines, TensorBoard, and progress on the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
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

from bytelm.pipelines.checkpoints.train_state import LossMonitor
from bytelm.pipelines.evaluation.scoring import bits_per_byte
from bytelm.pipelines.storage.files import write_atomic
from bytelm.pipelines.training.engine import StepStatistics

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
PLAIN_SECONDS = 10.0


class RunLog:
    """Writes a run's metrics. Only rank 0 makes one.

    On a terminal a bar shows the run; elsewhere a plain line comes every ten seconds.
    """

    def __init__(self, run: Path, steps: int, done: int, step_flops: float, peak_flops: float):
        """Lines of steps after `done` were written by a process whose work is lost, and are
        removed.

        Args:
            steps: in all, of which `done` were done by an earlier process.
            step_flops: FLOPs of a step, over all ranks.
            peak_flops: FLOP/s that the devices of all ranks reach.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.console = Console(highlight=False)
        self._steps = steps
        self._step_share = step_flops / peak_flops  # seconds of a step at the peak
        path = run / METRICS
        kept = _lines_up_to(path, done)
        write_atomic(path, "".join(line + "\n" for line in kept).encode())
        self._file = open(path, "a")  # noqa: SIM115
        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=done + 1)
        self._progress: Progress | None = None
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
            )
            self._task = self._progress.add_task("", total=steps, completed=done, figures="")
            self._progress.start()
        self._began, self._done_before = time.monotonic(), done
        self._restart_clock()
        self._last_plain = 0.0

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._writer.close()
        self._file.close()

    def step(
        self,
        step: int,
        statistics: StepStatistics,
        position: tuple[int, int],
        skipped: int,
        waited: float,
        is_due: bool,
    ) -> None:
        """Count a training step; record it where it is due.

        Args:
            position: epoch and row of its last row.
            skipped: updates skipped since the run began.
            waited: seconds that this rank waited for the step's data.
        """
        self._bytes += sum(statistics.payload_bytes.values())
        self._waited += waited
        self._steps_since += 1
        for piece in statistics.damage:
            self._write("damage", step, {"bytes": piece.size, "cause": piece.cause})
            self.say(f"step {step}: masked {piece.size} bytes: {piece.cause}")
        if not is_due:
            return
        seconds = time.monotonic() - self._since
        values = {
            "loss": statistics.loss,
            "bits_per_byte": {
                name: bits_per_byte(nats, statistics.payload_bytes[name])
                for name, nats in statistics.payload_nats.items()
                if statistics.payload_bytes[name]
            },
            "lr": statistics.lr,
            "grad_norm": statistics.grad_norm,
            "skipped_steps": skipped,
            "pad_ids": statistics.pad_ids,
            "bytes_per_second": self._bytes / seconds,
            "data_wait": self._waited / seconds,
            "mfu": self._steps_since * self._step_share / seconds,
            "epoch": position[0],
            "row": position[1],
        }
        self._restart_clock()
        self._record("train", step, values)
        self._show(step, _figures(values))

    def spike(self, step: int, loss: float, loss_monitor: LossMonitor) -> None:
        """Mark a loss that stands out."""
        self._write(
            "spike",
            step,
            {"loss": loss, "mean": loss_monitor.mean, "variance": loss_monitor.variance},
        )
        self.say(f"step {step}: loss {loss:.3f} is a spike, the mean is {loss_monitor.mean:.3f}")

    def skipped(self, step: int, statistics: StepStatistics, documents: Sequence[str]) -> None:
        """Record a step whose update was skipped, and the documents of its rows."""
        loss = str(statistics.loss)
        self._write("skipped", step, {"loss": loss, "documents": list(documents)})
        self.say(
            f"step {step}: loss {loss} or its gradient is not finite, the update is skipped; "
            f"documents: {'; '.join(documents)}"
        )

    def _restart_clock(self) -> None:
        """What follows is since the last line of figures."""
        self._since = time.monotonic()
        self._bytes, self._waited, self._steps_since = 0, 0.0, 0

    def _show(self, step: int, figures: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=step, figures=figures)
        elif time.monotonic() - self._last_plain > PLAIN_SECONDS or step == self._steps:
            self._last_plain = time.monotonic()
            rate = (self._last_plain - self._began) / (step - self._done_before)
            left = _clock(rate * (self._steps - step))
            self.say(f"step {step}/{self._steps}  {figures}  left {left}")

    def evaluation(self, step: int, metrics: dict[str, dict[str, float]]) -> None:
        """Record and show an evaluation: for each modality its figures."""
        self._record("eval", step, metrics)
        parts = [f"{name} {m['bits_per_byte']:.3f}" for name, m in metrics.items()]
        self.say(f"step {step}: bits per byte on val: {'  '.join(parts)}")
        self._restart_clock()

    def checkpoint(self, step: int, folder: Path) -> None:
        """Show where a checkpoint was written."""
        self.say(f"step {step}: checkpoint {folder}")
        self._restart_clock()

    def say(self, text: str) -> None:
        """Show a line above the bar."""
        self.console.print(text, soft_wrap=True)

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        line = {"kind": kind, "step": step, **_without_nan(values)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def _record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self._write(kind, step, values)
        for name, value in values.items():
            for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
                tag = "/".join(part for part in (kind, name, inner) if part)
                self._writer.add_scalar(tag, number, step)


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """The values with None for numbers that JSON cannot hold, at any depth."""
    return {
        name: _without_nan(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The whole lines of metrics of the steps up to one."""
    data = path.read_text() if path.exists() else ""
    whole, _, _ = data.rpartition("\n")  # what comes after it, a killed process left unfinished
    return [line for line in whole.splitlines() if json.loads(line)["step"] <= step]


def _figures(values: dict[str, Any]) -> str:
    bits = values["bits_per_byte"]
    shown = "  ".join(f"{n} {v:.2f}" for n, v in bits.items() if not math.isnan(v))
    return (
        f"loss {values['loss']:.3f}  bits/byte {shown}  {values['bytes_per_second'] / 1e3:.1f} kB/s"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
