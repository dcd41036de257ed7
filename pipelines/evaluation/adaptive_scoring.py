"""Documents scored by a model that learns from each while it scores it (`model.adaptation`).

A window is scored before the model learns from it. The state of output mixing goes on from window
to window, too, so that its counts and matches are those of the whole document.

    N ids of a document, framed as one piece    n ids of a window    m of them that are new
    V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bytelm.modalities import framing
from bytelm.modalities.framing import Segment, Span
from bytelm.model.adaptation import Adaptation, Learner
from bytelm.model.codec_features.layout import KIND, SIZE
from bytelm.model.codec_features.state import NO_PAYLOAD
from bytelm.model.codec_features.vectorized import compute_codec_features, compute_places
from bytelm.model.flops import step_bytes
from bytelm.model.layers import cross_entropy
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.mixer import DocumentMixer
from bytelm.pipelines.data.windows import growing_window_spans
from bytelm.pipelines.evaluation.scoring import scored_rows
from bytelm.pipelines.evaluation.windows import Document, ScoredDocument, batch_of, unscored
from bytelm.pipelines.runtime.device import autocast
from bytelm.pipelines.runtime.memory import available_bytes, sharing_ranks

MIXING_BYTES = 1 << 28
"""Memory of the mixing of a long document, about."""


def documents_in_memory(model: Megabyte, adaptation: Adaptation) -> int:
    """Documents that this process's part of the free memory holds at once, but one at least."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    window = replace(model.config, context=adaptation.window_length(model.config))
    size = 4 * 4 * parameters + step_bytes(window, number=4) + MIXING_BYTES
    return max(1, available_bytes() // (sharing_ranks() * size))


def score_adapting(
    document: Document, model: Megabyte, precision: str, adaptation: Adaptation
) -> ScoredDocument:
    """Score a document by a copy of the model that learns from it."""
    patch, device = model.config.patch, model.lm_head.weight.device
    scored, learner = unscored(document, patch), Learner(model, adaptation)
    mixer = DocumentMixer(len(scored.nats)) if model.config.output_mixing else None
    sizes = adaptation.window_length(model.config), adaptation.step_length(model.config)
    for spans, positions in growing_window_spans(document.segments, *sizes, patch):
        batch = batch_of([document.frame(spans, patch)])
        if model.config.codec_features:
            batch.codec_features = compute_codec_features(batch.ids, batch.document, patch)
        ids, _, modality, features, _ = batch.inputs(device)
        first = int(np.argmax(positions >= 0))
        is_new = torch.from_numpy(positions[first:] >= 0)
        new_ids = ids[0, first:]
        with autocast(device, precision):
            logits = learner.logits(ids, modality, features, first)
        nats = torch.zeros(len(positions), dtype=torch.float64)
        if mixer is None:
            nats[first:] = cross_entropy(logits.detach(), new_ids).double().cpu()
        else:
            places = _places(ids, spans, document.segments, patch)[first:]
            opens_document = torch.from_numpy(positions[first:] == 0)
            new = (x[is_new] for x in (logits.detach(), new_ids, places, opens_document))
            nats[first:][is_new] = mixer.nats(*new).cpu()
        (row,) = scored_rows(batch, nats[None])
        scored.fill(positions, row, slice(None))
        learner.learn(logits, new_ids, (is_new & batch.scored[0, first:]).to(device))
    return scored


def _places(ids: Tensor, spans: Sequence[Span], segments: Sequence[Segment], patch: int) -> Tensor:
    """Places [n, PLACES] of a window's ids [1, n] in the payloads of their document."""
    places = compute_places(ids, torch.zeros(1, 1, dtype=torch.int32), patch)[0]
    first = spans[0]  # the others begin their segments
    opening = framing.preamble_length(segments[first.segment].modality, patch)
    of_first = places[: opening + first.length]
    of_first[of_first[:, KIND] != NO_PAYLOAD, SIZE] += first.start
    return places
