"""The steps of a model's decoder over rows that code ids side by side.

B rows    n ids of the longest row    V ids
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.modalities import framing
from bytelm.model.codec_features.layout import PLACES
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.compression.range_coding import Ids
from bytelm.pipelines.compression.runs import Row


class Step(NamedTuple):
    """The next ids of all rows: their position, and the logits and places before them."""

    position: int
    """Index of these ids in their rows."""
    logits: Tensor
    """[B, V]."""
    places: Tensor | None
    """[B, PLACES] in the rows' payloads, for mixing."""


class RowGroup:
    """Rows side by side, and a padded copy of their ids, which coding writes.

    Args:
        rows: B of them, one at least.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.starts = np.array([row.start for row in rows])
        self._known = np.array([row.known for row in rows])
        self._lengths = np.array([len(row.ids) for row in rows])
        self.ids: Ids = np.full((len(rows), self._lengths.max()), framing.PAD, np.uint16)  # [B, n]
        for padded, row in zip(self.ids, rows, strict=True):
            padded[: len(row.ids)] = row.ids

    def coded(self, position: int) -> npt.NDArray[np.int64]:
        """Numbers of the rows whose id at a position is to be coded."""
        return np.flatnonzero((self._known <= position) & (position < self._lengths))

    def all_coded(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Positions and row numbers of all ids that are to be coded, in their order."""
        positions = np.arange(self.ids.shape[1])[:, None]
        at, rows = np.nonzero((self._known <= positions) & (positions < self._lengths))
        return at, rows

    def store(self) -> None:
        """Copy the ids into the rows."""
        for padded, row in zip(self.ids, self.rows, strict=True):
            row.ids[:] = padded[: len(row.ids)]


@torch.no_grad()
def steps_of(
    model: Megabyte, group: RowGroup, threads: int, is_mixed: bool, prefilled: int = 0
) -> Iterator[Step]:
    """Step a group's rows together. The ids of a step must be known when the next one is asked for.

    Args:
        threads: of the products that more of them would sum up otherwise.
        is_mixed: whether steps have places.
        prefilled: ids at the beginning that run in parallel, of a single row.
    """
    device = model.lm_head.weight.device
    count, longest = group.ids.shape
    codes = torch.tensor([row.modality.code for row in group.rows], device=device)
    decoder = Decoder(model, count, longest)
    prompts = torch.from_numpy(group.ids[:, :prefilled].astype(np.int64)).to(device)
    with torch_threads(threads):
        logits = decoder.prefill(list(prompts), codes if prefilled else torch.zeros_like(codes))
    for position in range(prefilled, longest):
        if position > prefilled:
            previous = torch.from_numpy(group.ids[:, position - 1].astype(np.int64)).to(device)
            logits = decoder.step(previous, codes if position == 1 else None)
        yield Step(position, logits, decoder.places if is_mixed else None)


def step_groups(
    model: Megabyte, groups: Sequence[RowGroup], threads: int
) -> list[tuple[RowGroup, Tensor, Tensor]]:
    """Step all rows of several groups together, whose ids are all known.

    A row of a decoder whose steps are compiled has the same logits alone and in any batch, so that
    who decodes the groups one after another finds the same.

    Returns:
        each group with logits [n, B, V] and places [n, B, PLACES] of all its ids.
    """
    together = RowGroup([row for group in groups for row in group.rows])
    count, longest = together.ids.shape
    logits = torch.empty(longest, count, model.config.vocab_size)
    places = torch.empty(longest, count, PLACES, dtype=torch.int32)
    for position, step_logits, step_places in steps_of(model, together, threads, is_mixed=True):
        assert step_places is not None
        logits[position], places[position] = step_logits, step_places
    counts = [len(group.rows) for group in groups]
    by_group = zip(groups, logits.split(counts, dim=1), places.split(counts, dim=1), strict=True)
    return [
        (group, logits[: group.ids.shape[1]], places[: group.ids.shape[1]])
        for group, logits, places in by_group
    ]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads: another number may round the products of PyTorch otherwise."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
