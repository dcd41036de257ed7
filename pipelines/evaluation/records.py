"""The result of an evaluation, and the file that keeps it in a run's folder.

RUN/evaluations/step-00001000-val-plain.json
RUN/evaluations/step-00001000-val-plain-2.json    of other sets, precision or limit
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from bytelm.pipelines.checkpoints.run_folder import checkpoint_name
from bytelm.pipelines.storage.files import write_atomic

EVALUATION_FORMAT = 1
EVALUATIONS_FOLDER = "evaluations"
Figures = dict[str, dict[str, float]]
_IDENTITY = ("split", "scoring", "precision", "limit")


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on some documents, and of codecs on the same ones; all of it plain JSON.

    Figures are keyed by modality; those of the model and what follows from them have `total` too.
    """

    about: dict[str, Any]
    """Facts: model, step, parameters, split, scoring, precision, limit, batch, sets with
    path and root hash, documents scored and present, version, date."""
    model: Figures
    """Figures of the evaluation heads."""
    intervals: dict[str, dict[str, list[float]]]
    """`bits_per_byte`: ends of its 95 % interval; lacks what has fewer than two documents."""
    maps: dict[str, list[dict[str, Any]]]
    """Where the bits go: the `BitMap`s of each modality."""
    codecs: Figures
    """Bits per payload byte of each codec, each sample a file."""
    codec_chunks: Figures
    """The same of chunks of 2,048 bytes."""
    codecs_missing: dict[str, str]
    """Codecs that cannot run here, and how to install each."""
    with_weights: Figures
    """`bits_per_byte` with the size of the weights counted in, and `weight_bytes`."""
    pairs: Figures
    """Bits per byte of segments under their condition and without, see `pairs.py`."""
    documents: list[dict[str, Any]]
    """Key, set, modality, bytes, bits and coded bits of each document; one of several modalities
    has an entry for each. Bits are NaN where a score is not finite."""
    codec_versions: dict[str, str] = field(default_factory=dict)
    """The tool or library that computed each codec of `codecs`, as "cjxl 0.7.0"; empty in files of
    earlier versions."""

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON holds it; a figure that is not finite is None."""
        return {"format": EVALUATION_FORMAT, **_finite(vars(self))}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluation:
        """The inverse of `to_dict`; ValueError for another format."""
        if values.get("format") != EVALUATION_FORMAT:
            raise ValueError(
                f"an evaluation of format {values.get('format')!r}, where this version reads "
                f"{EVALUATION_FORMAT}: evaluate again"
            )
        try:
            return cls(**{name: value for name, value in values.items() if name != "format"})
        except TypeError as error:
            raise ValueError(f"no whole evaluation ({error}): evaluate again") from error

    @property
    def identity(self) -> tuple[Any, ...]:
        """Facts in which two evaluations of one checkpoint agree if one replaces the other."""
        sets = tuple(entry["root"] for entry in self.about["sets"])
        return (sets, *(self.about[name] for name in _IDENTITY))


def keep_evaluation(run: Path, evaluation: Evaluation) -> Path:
    """Write an evaluation into its run's folder, in place of one of the same documents.

    Returns the path of the file.
    """
    folder = run / EVALUATIONS_FOLDER
    folder.mkdir(exist_ok=True)
    about = evaluation.about
    stem = f"{checkpoint_name(about['step'])}-{about['split']}-{about['scoring']}"
    for number in count(1):
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        if not path.exists() or _agrees(path, evaluation):
            break
    write_atomic(path, json.dumps(evaluation.to_dict(), allow_nan=False).encode())
    return path


def read_evaluation(path: Path) -> Evaluation:
    """Read the file of an evaluation; ValueError if it is damaged or of another format."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): evaluate again") from error
    try:
        return Evaluation.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path} holds {error}") from error


def _agrees(path: Path, evaluation: Evaluation) -> bool:
    """Whether a file may be replaced: it is of the same documents, or cannot be read."""
    try:
        return read_evaluation(path).identity == evaluation.identity
    except (ValueError, KeyError, TypeError):
        return True


def _finite(value: Any) -> Any:
    """Plain values with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
