"""Samples that a run draws while it trains, so that people see and hear what it knows.

    RUN/samples/step-00000500/samples.json              what each file is
    RUN/samples/step-00000500/image-004.png             a sample
    RUN/samples/step-00000500/image-004-prompt.png      the real file whose beginning it has
    RUN/samples/step-00000500/text-002-condition.png    the real file that a text describes

Prompts and seeds are the same at each step. Drawing changes nothing of the training: it uses a copy
of the weights, and noise of its own.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Sample
from bytelm.model.initialisation import model_without_weights
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import plural
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.errors import one_line
from bytelm.pipelines.generation.generate import Advance, generate_samples
from bytelm.pipelines.generation.sampling_defaults import uncalibrated_sampling
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.engine import Engine
from bytelm.pipelines.training.sample_requests import SampleRequest, sample_requests

SAMPLES_FOLDER = "samples"
SAMPLES_FILE = "samples.json"
DRAWING_SECONDS = 120.0
"""Time after which the samples that are left are not drawn."""
POLL_SECONDS = 0.5
"""Seconds between two moments at which all ranks ask whether one of them is to stop."""
_TEMPORARY_PREFIX = ".tmp-"
_STEP_FOLDER = re.compile(rf"({re.escape(_TEMPORARY_PREFIX)})?step-(\d{{8,}})")


@dataclass(frozen=True)
class SavedSample:
    """A sample in the run's folder."""

    path: Path
    sample: Sample
    title: str


@dataclass(frozen=True)
class Drawn:
    """The samples of a step, as far as they were drawn."""

    samples: Sequence[SavedSample]
    message: str
    """A line for the user."""


class _StopError(Exception):
    """A rank is asked to stop."""


class LateError(Exception):
    """The time for drawing is over; the `advance` of a `SampleWriter` raises it."""


class SampleDrawer:
    """Draws the samples of a run. Every rank has one and calls it alike; rank 0 draws."""

    def __init__(
        self, engine: Engine, run: Path, sets: Sequence[ShardSet], dataset_info: DatasetInfo
    ) -> None:
        self._engine = engine
        self._run = run
        self._sets = sets
        self._dataset_info = dataset_info
        self._is_stop_requested: Callable[[], bool] = lambda: False
        self._next_poll = 0.0

    def is_missing(self, step: int) -> bool:
        """Whether a step has no samples. Every rank has to call it."""
        is_missing = self._engine.rank == 0 and not samples_folder(self._run, step).is_dir()
        return self._engine.sum_over_ranks([is_missing], torch.int64)[0] > 0

    def draw(
        self, step: int, is_stop_requested: Callable[[], bool], seconds: float = math.inf
    ) -> Drawn | None:
        """Draw the samples of a step into the run's folder. Every rank has to call it.

        The other ranks wait for rank 0; each hears in POLL_SECONDS that one is asked to stop, and
        then nothing is kept, so that a resumed run draws them all. An error while drawing becomes
        the message.

        Args:
            seconds: time that is left, if it may be less than DRAWING_SECONDS; then the smallest
                samples come first.
        Returns:
            What was drawn, on rank 0 and unless a rank was asked to stop.
        """
        weights = self._engine.state_dict()
        self._is_stop_requested = is_stop_requested
        self._next_poll = 0.0
        if self._engine.rank != 0:
            while not self._poll(is_done=False):
                pass
            return None
        try:
            drawn = self._draw(weights, step, seconds)
        except _StopError:
            return None
        except Exception as error:  # the run goes on, whatever failed
            drawn = Drawn([], f"step {step}: no samples were drawn ({one_line(error)})")
        self._poll(is_done=True)
        return drawn

    def _poll(self, is_done: bool) -> bool:
        """Whether drawing ends: it is done, or a rank is asked to stop."""
        values = [is_done, self._is_stop_requested()]
        return any(self._engine.sum_over_ranks(values, torch.int64))

    def _draw(self, weights: dict[str, Tensor], step: int, seconds: float) -> Drawn:
        began = time.monotonic()
        limit = min(DRAWING_SECONDS, seconds)
        folder = samples_folder(self._run, step)
        temporary = folder.with_name(_TEMPORARY_PREFIX + folder.name)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

        def advance(count: int) -> None:
            now = time.monotonic()
            if now >= self._next_poll:
                self._next_poll = now + POLL_SECONDS
                if self._poll(is_done=False):
                    raise _StopError
            if now - began > limit:
                raise LateError

        try:
            requests = sample_requests(self._sets, self._dataset_info)
            if limit < DRAWING_SECONDS:
                requests.sort(key=lambda wanted: wanted.drawn_bytes)
            # On a CPU a step in fp32 is one compiled call, many times as fast as in bf16.
            on_gpu = self._engine.device.type == "cuda"
            precision = self._engine.config.train.precision if on_gpu else "fp32"
            writer = SampleWriter(temporary, self._model(weights), precision, advance)
            left_out = writer.write_all(requests)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        samples = [replace(saved, path=folder / saved.path.name) for saved in writer.saved]
        seconds = time.monotonic() - began
        message = f"step {step}: {plural(len(samples), 'sample')} in {folder}, {seconds:.0f} s"
        if left_out:
            message += f"; {left_out} more would have taken longer than {limit:.0f} s"
        return Drawn(samples, message)

    def _model(self, weights: dict[str, Tensor]) -> Megabyte:
        """A model of the run's present weights, in evaluation mode."""
        model = model_without_weights(self._engine.config.model)
        model.load_state_dict(weights, assign=True)
        model.tie_output()
        return model.to(self._engine.device).eval()


@dataclass
class SampleWriter:
    """Draws samples, and writes them and what they begin with into a folder."""

    folder: Path
    model: Megabyte
    precision: str
    advance: Advance
    saved: list[SavedSample] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def write_all(self, requests: Sequence[SampleRequest]) -> int:
        """Draw all that there is time for; returns the number of samples that are left out."""
        left_out = 0
        for number, wanted in enumerate(requests):
            try:
                self._write(wanted)
            except LateError:
                left_out = sum(len(later.seeds) for later in requests[number:])
                break
        text = json.dumps(self.records, indent=1, ensure_ascii=False)
        (self.folder / SAMPLES_FILE).write_text(text + "\n", encoding="utf-8")
        return left_out

    def _write(self, wanted: SampleRequest) -> None:
        """Draw the samples of one request; nothing is written before all of them are drawn."""
        name = wanted.request.modality
        requests = [wanted.request] * len(wanted.seeds)
        sampling = uncalibrated_sampling(self.model, name, len(wanted.request.prompt))
        drawn = dict(
            generate_samples(
                self.model, requests, wanted.seeds, sampling, self.precision, advance=self.advance
            )
        )
        first = sum(saved.sample.modality == name for saved in self.saved)
        stem = f"{name}-{first:03d}"
        prompt = self._shown(wanted.prompt, f"{stem}-prompt", is_text=name == "text")
        condition = self._shown(wanted.condition, f"{stem}-condition", is_text=name != "text")
        for number, seed in enumerate(wanted.seeds):
            path = self.folder / f"{name}-{first + number:03d}"
            path = MODALITIES[name].write_file(drawn[number], path)
            self.saved.append(SavedSample(path, drawn[number], wanted.title))
            self.records.append(
                {
                    "file": path.name,
                    "modality": name,
                    "seed": seed,
                    "prompt": prompt,
                    "given_share": len(wanted.request.prompt) / wanted.request.size,
                    "condition_on": condition,
                    "sampling": asdict(sampling),
                    "title": wanted.title,
                }
            )

    def _shown(self, sample: Sample | None, stem: str, is_text: bool) -> str | None:
        """A text as it is; the name of a file that is written for a prompt of another kind."""
        if sample is None:
            return None
        if is_text:
            return sample.data.decode("utf-8", "ignore")
        return MODALITIES[sample.modality].write_file(sample, self.folder / stem).name


def samples_folder(run: Path, step: int) -> Path:
    """The folder of the samples of a step."""
    return run / SAMPLES_FOLDER / f"step-{step:08d}"


def remove_samples_after(run: Path, step: int) -> None:
    """Remove the samples of steps after `step`, which are lost, and what a killed process left.

    Other files of the folder are the user's.
    """
    for folder in (run / SAMPLES_FOLDER).glob("*"):
        match = _STEP_FOLDER.fullmatch(folder.name)
        if match and (match[1] or int(match[2]) > step):
            shutil.rmtree(folder)
