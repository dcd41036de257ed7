"""Training steps beside the writing and the upload of checkpoints.

    python -m bytelm.tools.benchmarks.checkpoints [--model PRESET] [--steps N] [--every N]

Prints a JSON line a figure: `name`, `value`, `unit`, `reference` and `ratio` (value / reference).
One process trains on the demo's texts, writes a checkpoint every few steps, and uploads it to an S3
server on this machine, which is moto in a process of its own. The server stands for another
machine, whose time no step waits for, and so runs where nothing else wants the processor. Needs the
packages of `bytelm[dev]`; takes three to nine minutes on two cores. Writing and uploading are
spread over some 90 s: with fewer steps between checkpoints they are hurried, and no step is without
them.

    checkpoints/step      seconds of a step while a checkpoint is written or uploaded; reference:
                          of the other steps of the run
    checkpoints/wait      longest wait of a step for a save, which copies the state to memory;
                          reference: seconds of a step
    checkpoints/upload    MB/s to the server, its rests included
    checkpoints/cpu       processor seconds that writing and uploading a checkpoint take of the
                          training and of its process that uploads; reference: what the server
                          takes for it, which a real store does not take of this machine
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.request import urlopen

import fsspec  # type: ignore[import-untyped]  # it has no types
import psutil  # type: ignore[import-untyped]  # nor has this

from bytelm.pipelines.checkpoints import upload_process
from bytelm.pipelines.config import config_from_dict
from bytelm.pipelines.runtime.allocator import keep_freed_memory
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.runtime.threads import share_cores
from bytelm.pipelines.training.metrics_logger import METRICS
from bytelm.pipelines.training.preflight import ResumeOptions
from bytelm.pipelines.training.trainer import Trainer
from bytelm.tools.benchmarks.measure import Figure, in_fresh_process, print_figures
from bytelm.tools.repository import DEMO_FILES, run_bytelm

URL = "s3://bucket/run"
WARM_UP_STEPS = 3
"""Steps that are not measured."""
SERVER_SECONDS = 60.0
WRITER = "checkpoint"
"""Start of the name of the thread that writes."""


@dataclass
class Times:
    """What was measured of a run; steps and waits in seconds."""

    beside: list[float] = field(default_factory=list)
    """Steps during which a checkpoint was written or uploaded."""
    alone: list[float] = field(default_factory=list)
    """The other steps."""
    waits: list[float] = field(default_factory=list)
    """For each save, how long the next step waited for it."""
    uploads: list[float] = field(default_factory=list)
    """Bytes per second of each upload."""
    size: int = 0
    """Bytes of a checkpoint."""
    processor: dict[str, float] = field(default_factory=dict)
    """Seconds of the thread that writes and of the process that uploads."""


def checkpoint_figures(model: str, steps: int, every: int) -> Iterator[Figure]:
    """Figures of a run of a preset of `steps` measured steps with a save after every `every`."""
    with tempfile.TemporaryDirectory() as temporary, _server() as server:
        folder = Path(temporary)
        run_bytelm("prepare", DEMO_FILES / "text", "--out", folder / "text")
        served = _processor_seconds(server)
        times = in_fresh_process(_train, folder, model, WARM_UP_STEPS + steps, every)
        served = _processor_seconds(server) - served
    alone = mean(times.alone)
    counts = {"steps_beside": len(times.beside), "steps_alone": len(times.alone)}
    yield Figure("checkpoints/step", mean(times.beside), "s", alone, counts)
    yield Figure("checkpoints/wait", max(times.waits), "s", alone, {"checkpoint_bytes": times.size})
    yield Figure("checkpoints/upload", mean(times.uploads) / 1e6, "MB/s")
    count = len(times.uploads)
    own = {name: seconds / count for name, seconds in times.processor.items()}
    yield Figure("checkpoints/cpu", sum(own.values()), "s", served / count, own)


@contextmanager
def _server() -> Iterator[psutil.Process]:
    """An S3 server with an empty bucket, which the environment names."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        ["chrt", "--idle", "0", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + SERVER_SECONDS
        while server.poll() is None and time.monotonic() < end:
            with suppress(OSError), urlopen(url):
                break
            time.sleep(0.1)
        fsspec.filesystem("s3").mkdir("bucket")
        yield psutil.Process(server.pid)
    finally:
        server.kill()
        server.wait()


def _processor_seconds(process: psutil.Process) -> float:
    """Processor time that a process has taken so far."""
    times = process.cpu_times()
    return times.user + times.system


def _background_seconds() -> dict[str, float]:
    """Processor time so far of what writes and uploads."""
    writers = [t.native_id for t in threading.enumerate() if t.name.startswith(WRITER)]
    threads = [t for t in psutil.Process().threads() if t.id in writers]
    return {
        "write": sum(t.user_time + t.system_time for t in threads),
        "upload": _processor_seconds(_uploader()),
    }


def _uploader() -> psutil.Process:
    """The process of this one that uploads."""
    children = psutil.Process().children()
    return next(p for p in children if any(upload_process.__name__ in a for a in p.cmdline()))


class _MeasuredTrainer(Trainer):
    """A trainer that takes the time of its steps and saves."""

    times = Times()  # there is one trainer in a process
    began = waited = 0.0
    is_beside = False

    def _next_micro_batches(self) -> Any:
        """Begin a step, and so end the one before it."""
        now = time.monotonic()
        is_busy = not self.saves.is_idle
        if self.state.step > WARM_UP_STEPS:
            steps = self.times.beside if self.is_beside or is_busy else self.times.alone
            steps.append(now - self.began - self.waited)
        if self.waited:
            self.times.waits.append(self.waited)
        self.began, self.waited, self.is_beside = now, 0.0, is_busy
        return super()._next_micro_batches()

    def save(self) -> None:
        """Begin a save; the next step waits for it."""
        start = time.monotonic()
        super().save()
        self.waited = time.monotonic() - start

    def _finish_uploads(self) -> None:
        """Look at what writing and uploading took, before they end."""
        super()._finish_uploads()
        self.times.processor = _background_seconds()


def _train(folder: Path, model: str, steps: int, every: int) -> Times:
    """Train in this process, as `bytelm train` does, and measure."""
    keep_freed_memory()
    share_cores()
    values: dict[str, Any] = {
        "model": model,
        "data": {"sets": [{"path": str(folder / "text")}]},
        "train": {"steps": steps, "checkpoint_every": every, "checkpoint_url": URL, "eval_rows": 1},
        "trackers": [],
    }
    run = folder / "run"
    run.mkdir()
    trainer = _MeasuredTrainer.start(config_from_dict(values), run, ResumeOptions())
    assert isinstance(trainer, _MeasuredTrainer)
    with redirect_stdout(sys.stderr):
        trainer.run()
    for line in map(json.loads, (run / METRICS).read_text("utf-8").splitlines()):
        if line["kind"] == "upload" and line["size"]:
            trainer.times.uploads.append(line["size"] / line["seconds"])
            trainer.times.size = line["size"]
    return trainer.times


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Training beside checkpoints and uploads.")
    parser.add_argument("--model", default="modern-demo", metavar="PRESET", help="what is trained")
    parser.add_argument("--steps", type=int, default=1080, help="measured steps")
    parser.add_argument("--every", type=int, default=360, help="steps between checkpoints")
    options = parser.parse_args(arguments)
    print_figures(checkpoint_figures(options.model, options.steps, options.every))


if __name__ == "__main__":
    main()
