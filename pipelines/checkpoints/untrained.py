"""Models of random weights, named by a preset and a seed: they learn from what they code.

preset:modern-demo      the seed is 0
preset:modern-demo:7
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bytelm.model.adaptation import TRAINED, UNTRAINED, Adaptation
from bytelm.model.megabyte import Megabyte
from bytelm.model.presets import preset
from bytelm.pipelines.checkpoints.pretrained import save_pretrained

PREFIX = "preset:"
VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
MAX_SEED = (1 << 63) - 1


def is_untrained(location: str | Path) -> bool:
    """Whether a model's location names a preset and not a trained model."""
    return isinstance(location, str) and location.startswith(PREFIX)


def adaptation_of(location: str | Path) -> Adaptation:
    """Settings by which the model learns from what it codes; ValueError as `untrained_model`."""
    if not is_untrained(location):
        return TRAINED
    name, seed = _parsed(str(location))
    return replace(UNTRAINED, preset=f"{PREFIX}{name}:{seed}")


def untrained_model(location: str) -> Megabyte:
    """The model of random weights that a location names, the same for each call.

    Raises:
        ValueError: for an unknown preset, and for a seed that is none.
    """
    name, seed = _parsed(location)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Megabyte(preset(name)).eval()


def _parsed(location: str) -> tuple[str, int]:
    """Preset and seed that a location names."""
    name, _, text = location.removeprefix(PREFIX).partition(":")
    if text and not (text.isdecimal() and int(text) <= MAX_SEED):
        raise ValueError(
            f"{location} has the seed {text!r}: give a whole number of at most {MAX_SEED:,}, as "
            f"{PREFIX}{name}:7"
        )
    return name, int(text or 0)


@contextmanager
def saved_untrained(location: str) -> Iterator[str]:
    """The folder of `untrained_model`, which stays until the end of the body."""
    model = untrained_model(location)
    with TemporaryDirectory() as folder:
        save_pretrained(model, model.config, folder, {"views": VIEWS})
        yield folder
