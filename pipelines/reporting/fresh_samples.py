"""Samples that a report draws itself, where a run drew none at its newest checkpoint."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.reporting.drawn_samples import DrawnSample, read_drawn_samples
from bytelm.pipelines.runtime.progress import stderr_console
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.sample_requests import SampleRequest, sample_requests
from bytelm.pipelines.training.samples import LateError, SampleWriter

SECONDS = 45.0
"""Time for drawing; what is not drawn by then is left out."""
MAX_SEEDS = 2
"""Samples of each kind."""


def draw_fresh_samples(
    model: Megabyte, dataset_info: DatasetInfo, sets: Sequence[ShardSet], seconds: float = SECONDS
) -> tuple[list[DrawnSample], list[str]]:
    """Draw a few samples of each modality as a run does while it trains, and keep none on disk.

    Args:
        sets: prompts and captions are of their documents.
        seconds: time for all of them.
    Returns:
        the samples, and a line where some are left out.
    Raises:
        DamageError: for a damaged set.
    """
    requests = list(_chosen(sample_requests(sets, dataset_info)))
    deadline = time.monotonic() + seconds
    message = f"drawing samples, for at most {seconds:.0f} s"
    stderr_console().print(message, highlight=False)
    with tempfile.TemporaryDirectory() as name:

        def advance(count: int) -> None:
            if time.monotonic() > deadline:
                raise LateError

        left_out = SampleWriter(Path(name), model, "fp32", advance).write_all(requests)
        drawn, problems = read_drawn_samples(Path(name))
    if left_out:
        problems.append(
            f"{left_out} of the samples would have taken longer than {seconds:.0f} s to draw: "
            "see `bytelm generate`, or train with train.sample_every"
        )
    return drawn, problems


def _chosen(requests: Sequence[SampleRequest]) -> Iterator[SampleRequest]:
    """The first request of each kind, those with fewer bytes to draw first."""
    kinds = {(r.request.modality, r.title): r for r in reversed(requests)}
    for wanted in sorted(kinds.values(), key=lambda r: r.request.size - len(r.request.prompt)):
        yield replace(wanted, seeds=wanted.seeds[:MAX_SEEDS])
