"""Documents scored one window after the other, by a model that has read the windows before.

So are all documents of which a model learns (`model.adaptation`): a window is scored before the
model learns from it. So are those that do not fit a row, of a model that mixes its outputs. The
state of mixing goes on from window to window: its counts and matches are those of the document.

    N ids of a document, framed as one piece    n ids of a window    m of them, from the first new
    one on    V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bytelm.modalities import framing
from bytelm.modalities.framing import Segment, Span
from bytelm.model.adaptation import Adaptation, Learner
from bytelm.model.codec_features.vectorized import compute_codec_features, compute_places
from bytelm.model.flops import step_bytes
from bytelm.model.layers import cross_entropy
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.mixer import DocumentMixer, mixing_bytes, shift_places
from bytelm.pipelines.data.windows import Positions, growing_window_spans, window_spans
from bytelm.pipelines.evaluation.scoring import scored_rows
from bytelm.pipelines.evaluation.windows import Document, ScoredDocument, batch_of, unscored
from bytelm.pipelines.runtime.device import autocast
from bytelm.pipelines.runtime.memory import available_bytes, sharing_ranks

LONG_DOCUMENT = 1 << 20
"""Ids of a document whose mixing takes as much memory as any."""

LogitsOf = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
"""Computes logits [m, V] of a window, as `Megabyte.last_logits`."""


def documents_in_memory(model: Megabyte, adaptation: Adaptation) -> int:
    """Documents that this process's part of the free memory holds at once, but one at least."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    window = replace(model.config, context=adaptation.window_length(model.config))
    size = 4 * 4 * parameters + step_bytes(window, number=4) + mixing_bytes(LONG_DOCUMENT)
    return max(1, available_bytes() // (sharing_ranks() * size))


def score_adapting(
    document: Document, model: Megabyte, precision: str, adaptation: Adaptation
) -> ScoredDocument:
    """Score a document by a copy of the model that learns from it."""
    scored, learner = unscored(document, model.config.patch), Learner(model, adaptation)
    scorer = _WindowScorer(document, scored, model, precision, len(scored.nats))
    sizes = adaptation.window_length(model.config), adaptation.step_length(model.config)
    for window in growing_window_spans(document.segments, *sizes, model.config.patch):
        learner.learn(*scorer.score(*window, learner.logits))
    return scored


@torch.no_grad()
def score_in_order(
    document: Document,
    model: Megabyte,
    precision: str,
    overlap: bool = False,
    before_window: Callable[[], object] = lambda: None,
) -> ScoredDocument:
    """Score a document in windows of the model's context, by the model as it is.

    Args:
        overlap: a window begins in the middle of the window before it.
        before_window: called before each window; it may raise to end the scoring.
    """
    config, scored = model.config, unscored(document, model.config.patch)
    mixed_ids = max(len(scored.nats), config.context)
    scorer = _WindowScorer(document, scored, model, precision, mixed_ids)
    for window in window_spans(document.segments, config.context, config.patch, overlap, False):
        before_window()
        scorer.score(*window, model.last_logits)
    return scored


class _WindowScorer:
    """Scores the windows of a document in their order.

    Args:
        scored: takes the scores.
        mixed_ids: ids that the mixing is made for, see `DocumentMixer`.
    """

    def __init__(
        self,
        document: Document,
        scored: ScoredDocument,
        model: Megabyte,
        precision: str,
        mixed_ids: int,
    ) -> None:
        self._document, self._scored = document, scored
        self._config, self._device = model.config, model.lm_head.weight.device
        self._precision = precision
        self._mixer = DocumentMixer(mixed_ids) if model.config.output_mixing else None

    def score(
        self, spans: Sequence[Span], positions: Positions, logits_of: LogitsOf
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score the new ids of a window.

        Args:
            positions: [n], as in `Window`.
        Returns:
            what `Learner.learn` takes: logits [m, V], ids [m], and [m] whether each is new and
            scored.
        """
        patch = self._config.patch
        batch = batch_of([self._document.frame(spans, patch)])
        if self._config.codec_features:
            batch.codec_features = compute_codec_features(batch.ids, batch.document, patch)
        ids, _, modality, features, _ = batch.inputs(self._device)
        first = int(np.argmax(positions >= 0))
        is_new = torch.from_numpy(positions[first:] >= 0)
        new_ids = ids[0, first:]
        with autocast(self._device, self._precision):
            logits = logits_of(ids, modality, features, first)
        nats = torch.zeros(len(positions), dtype=torch.float64)
        if self._mixer is None:
            nats[first:] = cross_entropy(logits.detach(), new_ids).double().cpu()
        else:
            places = _places(ids, spans, self._document.segments, patch)[first:]
            opens_document = torch.from_numpy(positions[first:] == 0)
            new = (x[is_new] for x in (logits.detach(), new_ids, places, opens_document))
            nats[first:][is_new] = self._mixer.nats(*new).cpu()
        (row,) = scored_rows(batch, nats[None])
        self._scored.fill(positions, row, slice(None))
        return logits, new_ids, (is_new & batch.scored[0, first:]).to(self._device)


def _places(ids: Tensor, spans: Sequence[Span], segments: Sequence[Segment], patch: int) -> Tensor:
    """Places [n, PLACES] of a window's ids [1, n] in the payloads of their document."""
    places = compute_places(ids, torch.zeros(1, 1, dtype=torch.int32), patch)[0]
    first = spans[0]  # the others begin their segments
    opening = framing.preamble_length(segments[first.segment].modality, patch)
    shift_places(places[: opening + first.length], first.start)
    return places
