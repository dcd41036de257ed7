"""Generated samples as a run's folder keeps them: the files and `samples.json` beside them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.generation.media import detect_modality, read_bytes, read_sample
from bytelm.pipelines.training.samples import SAMPLES_FILE, SAMPLES_FOLDER

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class DrawnSample:
    """One generated sample, and what it was drawn from."""

    sample: Sample
    title: str
    seed: int
    sampling: Mapping[str, float]
    prompt: Sample | None
    """The real file that it begins like; of a text, its first words."""
    given_share: float
    """Share of an image or a sound that is its prompt's."""
    condition: Sample | None
    """The caption or file that it follows."""


def newest_samples(run: Path, last_step: float = math.inf) -> tuple[int, Path] | None:
    """Step and folder of a run's newest samples up to a step; None where it has none."""
    found = [
        (int(match[1]), folder)
        for folder in (run / SAMPLES_FOLDER).glob("step-*")
        if (match := _STEP.fullmatch(folder.name))
        and int(match[1]) <= last_step
        and (folder / SAMPLES_FILE).is_file()
    ]
    return max(found, default=None)


def read_drawn_samples(folder: Path) -> tuple[list[DrawnSample], list[str]]:
    """The samples of a folder, and a line for each that cannot be read."""
    try:
        records = json.loads((folder / SAMPLES_FILE).read_text("utf-8"))
        entries = [dict(record) for record in records]
    except (OSError, ValueError, TypeError) as error:
        return [], [f"{folder / SAMPLES_FILE} cannot be read: {error}"]
    drawn, problems = [], []
    for result in _read_all(folder, entries):
        if isinstance(result, str):
            problems.append(result)
        else:
            drawn.append(result)
    return drawn, problems


def _read_all(folder: Path, entries: list[dict[str, Any]]) -> Iterator[DrawnSample | str]:
    for entry in entries:
        try:
            yield _drawn(folder, entry)
        except (OSError, ValueError, TypeError, KeyError) as error:
            yield f"a sample in {folder} cannot be read: {error}"


def _drawn(folder: Path, entry: Mapping[str, Any]) -> DrawnSample:
    modality, prompt, condition = entry["modality"], entry["prompt"], entry["condition_on"]
    prompted = conditioned = None
    if prompt is not None:
        prompted = _text(prompt) if modality == "text" else _file(folder, prompt, modality)
    if condition is not None:
        conditioned = _file(folder, condition, None) if modality == "text" else _text(condition)
    return DrawnSample(
        sample=_file(folder, entry["file"], modality),
        title=str(entry["title"]),
        seed=int(entry["seed"]),
        sampling={str(name): float(value) for name, value in entry["sampling"].items()},
        prompt=prompted,
        given_share=float(entry.get("given_share", 0)),
        condition=conditioned,
    )


def _text(content: str) -> Sample:
    return Sample("text", Header(), content.encode("utf-8", "replace"))


def _file(folder: Path, name: str, modality: str | None) -> Sample:
    """The sample in a file of the folder."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no file of the folder")
    path = folder / name
    kind = modality or detect_modality(path)
    if kind is None:
        raise ValueError(f"{name} is no image and no sound")
    if kind == "text":  # any bytes: a model may draw what is no valid text
        return Sample("text", Header(), read_bytes(path))
    return read_sample(kind, path, MODALITIES[kind].options_for(MODALITIES[kind].views[0]))
