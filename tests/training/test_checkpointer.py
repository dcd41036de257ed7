"""A save that is spread over the steps, until something waits for it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers.tiny_models import tiny_config, tiny_model

from bytelm.pipelines.checkpoints.manifest import CHECKPOINT_MANIFEST, checkpoint_damage
from bytelm.pipelines.checkpoints.train_state import TrainState
from bytelm.pipelines.training.checkpointer import Checkpointer
from bytelm.pipelines.training.engine import Engine
from bytelm.pipelines.training.state_copy import write_state_file

LONG_SHARE = 1e-7
"""At which a rest after any work takes longer than a test."""


class OneRank:
    """The parts of an engine that a checkpointer needs, for a tiny model on one rank."""

    rank, ranks = 0, 1

    def __init__(self) -> None:
        train = SimpleNamespace(async_checkpoints=True, keep_last=1, keep_every=0)
        self.config = SimpleNamespace(model=tiny_config("two"), train=train)

    def gather(self, items: list[Any]) -> list[Any]:
        return items

    def barrier(self) -> None:
        """There are no others."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(tiny_model("two").state_dict())

    def save(self, folder: Path, take: Callable[[dict[str, Any], Path], None]) -> None:
        take({"weights": torch.arange(3.0)}, folder / "state.pt")


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    """One whose saves do not end by themselves, after an hour since the last one."""
    made = Checkpointer(cast(Engine, OneRank()), tmp_path, {}, LONG_SHARE)
    made._last_begin -= 3600
    yield made
    made.close()


def test_a_save_rests_until_something_waits_for_it(
    checkpointer: Checkpointer, tmp_path: Path
) -> None:
    checkpointer.begin(TrainState(3, 0, 0, {}, 1, 0))
    time.sleep(0.3)
    assert checkpointer.is_busy
    folder = checkpointer.finish()
    assert folder == tmp_path / "checkpoints" / "step-00000003"
    assert checkpoint_damage(folder, lambda path: path != "state.pt") is None


def test_a_save_that_rests_is_none_once_the_run_ends(
    checkpointer: Checkpointer, tmp_path: Path
) -> None:
    checkpointer.begin(TrainState(3, 0, 0, {}, 1, 0))
    checkpointer.close()
    assert not list(tmp_path.rglob(CHECKPOINT_MANIFEST))


def test_the_bytes_are_those_of_torch_save(tmp_path: Path) -> None:
    """However large a tensor is; there is a rest after each piece."""
    rests = 0

    def rest() -> None:
        nonlocal rests
        rests += 1

    value = {"large": torch.arange(3_000_000), "small": torch.ones(2)}
    write_state_file(value, tmp_path / "state.pt", threading.Event(), rest)
    expected = io.BytesIO()
    torch.save(value, expected)
    assert (tmp_path / "state.pt").read_bytes() == expected.getvalue()
    assert rests > 5
