"""The steps of a model's decoder over rows that code ids side by side.

B rows    n ids of a row, or of the longest one    V ids of the vocabulary
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
from bytelm.model.output_mixing.mixer import shift_places
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


class SteppedRow(NamedTuple):
    """A row whose ids are all known, with the logits and places before each."""

    row: Row
    logits: Tensor
    """[n, V]."""
    places: Tensor
    """[n, PLACES] in the document's payload."""


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


def step_rows(model: Megabyte, rows: Sequence[Row], threads: int) -> list[SteppedRow]:
    """Step rows together, whose ids are all known.

    A row of a decoder whose steps are compiled has the same logits alone and in any batch, so that
    who decodes it beside other rows finds the same.
    """
    group = RowGroup(rows)
    count, longest = group.ids.shape
    logits = torch.empty(count, longest, model.config.vocab_size)
    places = torch.empty(count, longest, PLACES, dtype=torch.int32)
    for position, of_step, step_places in steps_of(model, group, threads, is_mixed=True):
        assert step_places is not None
        logits[:, position], places[:, position] = of_step, step_places
    for row, of_row in zip(rows, places, strict=True):
        shift_places(of_row, row.start)
    return [
        SteppedRow(row, row_logits[: len(row.ids)], row_places[: len(row.ids)])
        for row, row_logits, row_places in zip(rows, logits, places, strict=True)
    ]


def in_coding_order(
    rows: Sequence[SteppedRow], first: int, stop: int
) -> tuple[npt.NDArray[np.int64], Ids, Tensor, Tensor]:
    """The ids of rows at positions [first, stop) that are to be coded, as a decoder steps.

    Returns:
        of each id in turn the number of its row [m], itself [m], its logits [m, V] and its places
        [m, PLACES].
    """
    spans = [slice(max(first, row.known), min(stop, len(row.ids))) for row, *_ in rows]
    positions = [np.arange(span.start, span.stop) for span in spans]
    numbers = np.repeat(np.arange(len(rows)), [len(at) for at in positions])
    order = np.lexsort((numbers, np.concatenate(positions)))  # by position, then by row
    taken = torch.from_numpy(order)
    parts = list(zip(rows, spans, strict=True))
    ids = np.concatenate([stepped.row.ids[span] for stepped, span in parts])
    logits = torch.cat([stepped.logits[span] for stepped, span in parts])
    places = torch.cat([stepped.places[span] for stepped, span in parts])
    return numbers[order], ids[order], logits[taken], places[taken]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads: another number may round the products of PyTorch otherwise."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
