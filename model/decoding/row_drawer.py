"""Rows that are drawn together: prompts, then ids by a sampler, some at a time.

`row_drawer` chooses how: a GPU replays steps of fixed shapes (`static_decoder.py`), a CPU steps
through a `Decoder`. Who draws does not know.

Shapes:
    B   rows                     t   ids of each prompt
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.model.decoding.decoder import Decoder
from bytelm.model.decoding.row_sampler import RowSampler
from bytelm.model.decoding.static_decoder import IDS_AT_ONCE, StaticDecoder
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.mixer import LEAST_PROMPT, DrawingMixer

STEPS_AT_ONCE = 8
"""Steps of a CPU before what was drawn is looked at, which costs a good part of a small step.
Rows that have ended meanwhile take up to seven steps in vain."""
COMPILED_STEPS = 2**15
"""Steps from which compiling them for a GPU is worth its half a minute, by an estimate."""


class DrawnIds(NamedTuple):
    """The values that the host reads of the rows after some steps."""

    ids: npt.NDArray[np.uint8]
    """[B, count], the bytes of these steps; any in rows that have ended."""
    drawn: npt.NDArray[np.int64]
    """[B], bytes that the sampler has drawn in each row so far, before its end."""


class RowDrawer(Protocol):
    """Draws rows that all hold equally many ids."""

    ids_at_once: int
    """Ids after which reading them costs little beside drawing them."""

    def begin(self, prompts: Tensor, modality: int) -> None:
        """Start every row with its prompt, [B, t] int64, and forget what rows held.

        Args:
            modality: the code of the modality of the ids that follow.
        """

    def draw(self, count: int) -> DrawnIds:
        """Draw the next `count` ids of every row."""


def draws_from_mixture(model: Megabyte, prompt_bytes: int) -> bool:
    """Whether a payload behind its first `prompt_bytes` is drawn from a mixture.

    With output mixing, a CPU draws from the mixture as the prompt left it, and a GPU from the
    network alone, which mixing would hold up.
    """
    is_on_host = model.lm_head.weight.device.type == "cpu"
    return model.config.output_mixing and is_on_host and prompt_bytes >= LEAST_PROMPT


def row_drawer(
    model: Megabyte, batch: int, length: int, sampler: RowSampler, steps: int
) -> RowDrawer:
    """The fastest drawer of `batch` rows of at most `length` ids on the model's device.

    Under autocast, products have autocast's type: make and use a drawer inside one such context.

    Args:
        steps: ids that rows are drawn in all, by this drawer and by others of the same model.
    """
    if model.lm_head.weight.device.type == "cuda":
        return StaticRows(model, batch, length, sampler, is_compiled=steps >= COMPILED_STEPS)
    return SteppedRows(model, batch, length, sampler)


class StaticRows:
    """Rows of a `StaticDecoder`, which the host reads only once in `ids_at_once` steps."""

    def __init__(
        self,
        model: Megabyte,
        batch: int,
        length: int,
        sampler: RowSampler,
        *,
        is_compiled: bool = False,
    ) -> None:
        self._decoder = StaticDecoder(model, batch, length, sampler)
        if is_compiled:
            self._decoder.compile()
        self._sampler = sampler
        patch = model.config.patch
        self.ids_at_once = -(-IDS_AT_ONCE // patch) * patch

    def begin(self, prompts: Tensor, modality: int) -> None:
        """See `RowDrawer`."""
        self._decoder.begin(prompts, modality)

    def draw(self, count: int) -> DrawnIds:
        """See `RowDrawer`."""
        self._decoder.draw(count)
        ids = self._decoder.last_ids(count).to(torch.uint8)
        return DrawnIds(ids.cpu().numpy(), self._sampler.drawn.cpu().numpy())


class SteppedRows:
    """Rows of a `Decoder`, whose steps the host takes one by one."""

    ids_at_once = STEPS_AT_ONCE

    def __init__(self, model: Megabyte, batch: int, length: int, sampler: RowSampler) -> None:
        self._model = model
        self._decoder = Decoder(model, batch, length)
        self._sampler = sampler
        self._mixer: DrawingMixer | None = None
        self._logits: Tensor | None = None  # of the next ids, where they are known already
        self._ids = torch.zeros(batch, dtype=torch.int64)  # the last ones

    def begin(self, prompts: Tensor, modality: int) -> None:
        """See `RowDrawer`."""
        codes = torch.full((len(prompts),), modality, device=prompts.device)
        self._mixer = None
        if draws_from_mixture(self._model, prompts.shape[1]):
            self._logits = self._read_prompts(prompts, codes)
        else:
            self._logits = self._decoder.prefill(list(prompts), codes)

    def _read_prompts(self, prompts: Tensor, codes: Tensor) -> Tensor:
        """Start the rows, and let mixtures learn from their prompts; returns the next logits."""
        mixer = DrawingMixer(len(prompts), self._model.config.context)
        logits = torch.empty(len(prompts), self._model.config.vocab_size)
        for rows, of_prompt in self._decoder.prefill_whole(list(prompts), codes):
            places = self._decoder.prompt_places(rows[0])
            mixer.read(rows, prompts[rows[0]], of_prompt[:-1], places)
            logits[rows] = of_prompt[-1]
        if mixer.is_mixed.any():
            self._mixer = mixer
            mixer.mix(None, logits, self._decoder.places)
        return logits

    def draw(self, count: int) -> DrawnIds:
        """See `RowDrawer`."""
        ids = np.empty((len(self._ids), count), np.uint8)
        for step in range(count):
            logits = self._step() if self._logits is None else self._logits
            self._ids, self._logits = self._sampler.draw(logits), None
            ids[:, step] = self._ids.cpu().numpy()
        return DrawnIds(ids, self._sampler.drawn.cpu().numpy())

    def _step(self) -> Tensor:
        """The logits of the next ids, [B, V]."""
        logits = self._decoder.step(self._ids)
        if self._mixer is not None:
            self._mixer.mix(self._ids, logits, self._decoder.places)
        return logits
