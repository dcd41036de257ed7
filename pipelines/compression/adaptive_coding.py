"""Coding by a model that learns from each document while it codes it (`model.adaptation`).

A document is coded alone, in the windows in which evaluation scores it: a decoder is made of the
weights as they are, reads the ids that the window shares with the one before, and steps through the
others; then the model learns from the window. Encoder and decoder do the same in fp32, with as many
threads as the container names, so that their weights stay the same to the last bit.

    n ids of a window
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bytelm.modalities.framing import MAX_ENDS, Framed
from bytelm.model.adaptation import Adaptation, Learner
from bytelm.model.codec_features.layout import KIND, SIZE
from bytelm.model.codec_features.state import NO_PAYLOAD
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.output_mixing.mixer import RowMixer
from bytelm.pipelines.compression.document_coder import (
    Coder,
    DocumentCoder,
    Piece,
    Row,
    code_ids,
    payload_row,
    torch_threads,
)
from bytelm.pipelines.compression.documents import Document
from bytelm.pipelines.data.windows import Positions, growing_window_spans, segment_length


@dataclass(frozen=True)
class AdaptiveCoder(DocumentCoder):
    """Codes documents one after another; the model is on the CPU."""

    adaptation: Adaptation

    def pieces(self, document: Document) -> list[Piece]:
        """The document as one piece."""
        return [Piece(document, 0, document.segment.size + MAX_ENDS)]

    def code_payloads(self, coder: Coder, batches: Sequence[Sequence[Piece]]) -> None:
        """Code the documents of each batch one by one, as `DocumentCoder.code_payloads`."""
        with torch_threads(self.threads):
            for together in batches:
                for piece in together:
                    self._code_document(coder, piece.document)

    def _code_document(self, coder: Coder, document: Document) -> None:
        config, segment = self.model.config, document.segment
        patch, adaptation = config.patch, self.adaptation
        learner = Learner(self.model, adaptation)
        ids_in_all = segment_length(segment, patch)
        mixer = RowMixer(1, ids_in_all) if config.output_mixing else None
        sizes = adaptation.window_length(config), adaptation.step_length(config)
        for (span,), positions in growing_window_spans([segment], *sizes, patch):
            stop = min(span.start + span.length, segment.size + MAX_ENDS)
            piece = Piece(document, span.start, stop)
            framed = piece.frame(patch)
            first = int(np.argmax(positions >= 0))
            row = payload_row(piece, framed, patch, first)
            self._code_window(coder, learner, row, mixer, span.start)
            piece.store(row, framed)
            _learn(learner, piece.frame(patch), positions, first)

    @torch.no_grad()
    def _code_window(
        self, coder: Coder, learner: Learner, row: Row, mixer: RowMixer | None, start: int
    ) -> None:
        """Code the ids of a window that are not known; its payload begins at the byte `start`."""
        decoder = Decoder(learner.model, 1, len(row.ids))
        only, code = np.zeros(1, np.int64), torch.tensor([row.modality.code])
        logits = decoder.prefill([torch.from_numpy(row.ids[: row.known].astype(np.int64))], code)
        for position in range(row.known, len(row.ids)):
            if position > row.known:
                logits = decoder.step(torch.tensor([int(row.ids[position - 1])]))
            places = None
            if mixer is not None:
                places = decoder.places
                places[places[:, KIND] != NO_PAYLOAD, SIZE] += start
            own = row.ids[position : position + 1]
            row.ids[position] = code_ids(coder, only, own, logits, mixer, places)[0]
            self.advance(1)


def _learn(learner: Learner, framed: Framed, positions: Positions, first: int) -> None:
    """Learn from the new ids of a window, which are those from `first` on."""
    ids = torch.from_numpy(framed.ids.astype(np.int64))
    is_new = torch.from_numpy((positions >= 0) & framed.scored)[first:]
    logits = learner.logits(ids[None], torch.from_numpy(framed.modality)[None], None, first)
    learner.learn(logits, ids[first:], is_new)
