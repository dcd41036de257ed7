"""The coder of documents, whose runs of pieces step together: see `coding`.

B rows of a batch    R rows that code an id in a step    n ids of a row    V ids
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.modalities import framing
from bytelm.model.adaptation import Adaptation, Learner
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.bit_coder import BitDecoder, BitEncoder
from bytelm.model.output_mixing.mixer import RowMixer, mixing_bytes, shift_places
from bytelm.pipelines.compression.container import Words
from bytelm.pipelines.compression.documents import Document
from bytelm.pipelines.compression.range_coding import Ids, RangeDecoder, RangeEncoder
from bytelm.pipelines.compression.runs import Piece, Row, Run, runs_of
from bytelm.pipelines.data.windows import segment_length

STREAM_IDS = 1 << 15
"""Ids from which on a stream takes no further batch; containers of format 3 depend on it. A stream
costs some ten bytes, a thousandth of what so many ids come to."""
MOST_MIXING_BYTES = 1 << 30
"""Memory of the mixing of a batch: of long documents, as many step together as it has room for."""

StreamEncoder = RangeEncoder | BitEncoder
StreamDecoder = RangeDecoder | BitDecoder
Coder = StreamEncoder | StreamDecoder
"""Coders of a stream: of binary decisions where the model mixes its outputs. Both sides of the
compressor run the same code with them."""

Advance = Callable[[int], object]
"""Called with the number of payload ids and ends that were just coded."""


@dataclass(frozen=True)
class DocumentCoder:
    """The steps of a model in which an encoder or a decoder codes ids."""

    model: Megabyte
    batch: int
    """Most rows that step together."""
    threads: int
    """Threads of the products that more of them would sum up otherwise."""
    advance: Advance
    adaptation: Adaptation | None = None
    """Settings by which the model, on a CPU, learns from each document; None: it does not."""

    def encoder(self) -> StreamEncoder:
        """An encoder of a new stream."""
        return BitEncoder() if self.model.config.output_mixing else RangeEncoder()

    def decoder(self, words: Words) -> StreamDecoder:
        """A decoder of a stream's words."""
        return BitDecoder(words) if self.model.config.output_mixing else RangeDecoder(words)

    def streams(self, documents: Sequence[Document]) -> list[list[list[Run]]]:
        """The batches of runs that each stream holds; one stream at least.

        Runs of about the same length step together, those of the most pieces first.
        """
        config = self.model.config
        runs = [run for document in documents for run in runs_of(document, config, self.adaptation)]
        runs.sort(key=lambda run: -run.whole.size)
        streams: list[list[list[Run]]] = [[]]
        ids = first = 0
        while first < len(runs):
            if ids >= STREAM_IDS:
                streams.append([])
                ids = 0
            together = runs[first : first + self._most_rows(runs[first])]
            streams[-1].append(sorted(together, key=lambda run: -len(run.pieces)))
            ids += sum(run.whole.size for run in together)
            first += len(together)
        return streams

    def code_rows(self, coder: Coder, rows: Sequence[Row]) -> None:
        """Code rows, at most `batch` of them at once."""
        for first in range(0, len(rows), self.batch):
            together = rows[first : first + self.batch]
            mixer = self._new_mixer(len(together), self.model.config.context)
            self._step_rows(coder, together, mixer, lambda coded: None)

    def code_payloads(self, coder: Coder, batches: Sequence[Sequence[Run]]) -> None:
        """Code bodies with known preambles; a decoder fills the documents' payloads.

        Raises ValueError where a payload does not end where it should.
        """
        for runs in batches:
            mixer = self._new_mixer(len(runs), max(map(self._mixed_ids, runs)))
            learner = None if self.adaptation is None else Learner(self.model, self.adaptation)
            for turn in range(len(runs[0].pieces)):
                pieces = [run.pieces[turn] for run in runs if turn < len(run.pieces)]
                self._code_pieces(coder, pieces, mixer, learner)

    def _most_rows(self, longest: Run) -> int:
        """Rows of a batch of runs that are no longer than one."""
        if self.adaptation is not None:
            return 1
        if not self.model.config.output_mixing:
            return self.batch
        room = MOST_MIXING_BYTES // mixing_bytes(self._mixed_ids(longest))
        return max(1, min(self.batch, room))

    def _mixed_ids(self, run: Run) -> int:
        """Ids that the mixing of a run is made for, as evaluation makes it."""
        config = self.model.config
        ids = segment_length(run.pieces[0].document.segment, config.patch)
        return ids if self.adaptation is not None else max(ids, config.context)

    def _new_mixer(self, rows: int, length: int) -> RowMixer | None:
        return RowMixer(rows, length) if self.model.config.output_mixing else None

    def _code_pieces(
        self,
        coder: Coder,
        pieces: Sequence[Piece],
        mixer: RowMixer | None,
        learner: Learner | None,
    ) -> None:
        """Code the next pieces of runs side by side, and learn from them."""
        patch = self.model.config.patch
        framed = [piece.frame(patch) for piece in pieces]
        rows = [piece.row(ids, patch) for piece, ids in zip(pieces, framed, strict=True)]
        self._step_rows(coder, rows, mixer, self.advance, learner)
        for piece, row, ids in zip(pieces, rows, framed, strict=True):
            piece.store(row, ids)
        if learner is not None:
            with torch_threads(self.threads):
                _learn(learner, pieces[0], patch)

    @torch.no_grad()
    def _step_rows(
        self,
        coder: Coder,
        rows: Sequence[Row],
        mixer: RowMixer | None,
        advance: Advance,
        learner: Learner | None = None,
    ) -> None:
        """Step rows together, and code in each step the ids [R] that are not known.

        Args:
            mixer: of a model that mixes; its first rows are these.
            learner: of the only row, with the weights for it; what is known is prefilled then.
        """
        model = self.model if learner is None else learner.model
        device = model.lm_head.weight.device
        lengths = np.array([len(row.ids) for row in rows])
        known = np.array([row.known for row in rows])
        starts = np.array([row.start for row in rows])
        is_later = bool(starts.any())
        longest = int(lengths.max())
        ids = np.full((len(rows), longest), framing.PAD, np.uint16)  # [B, n]
        for padded, row in zip(ids, rows, strict=True):
            padded[: len(row.ids)] = row.ids
        codes = torch.tensor([row.modality.code for row in rows], device=device)

        prefilled = 0 if learner is None else rows[0].known
        prompts = torch.from_numpy(ids[:, :prefilled].astype(np.int64)).to(device)
        decoder = Decoder(model, len(rows), longest)
        with torch_threads(self.threads):
            before = codes if prefilled else torch.zeros_like(codes)
            logits = decoder.prefill(list(prompts), before)
        for position in range(prefilled, longest):
            if position > prefilled:
                previous = torch.from_numpy(ids[:, position - 1].astype(np.int64)).to(device)
                logits = decoder.step(previous, codes if position == 1 else None)
            coded = np.flatnonzero((known <= position) & (position < lengths))  # [R]
            if coded.size == 0:
                continue
            places = None
            if mixer is not None:
                places = decoder.places
                if is_later:  # most rows begin their documents, and a step takes little longer
                    shift_places(places, starts)
            ids[coded, position] = _code_ids(
                coder, coded, ids[coded, position], logits, mixer, places
            )
            advance(coded.size)
        for padded, row in zip(ids, rows, strict=True):
            row.ids[:] = padded[: len(row.ids)]


def _learn(learner: Learner, piece: Piece, patch: int) -> None:
    """Learn from the ids of a piece that earlier ones do not hold."""
    framed = piece.frame(patch)
    ids = torch.from_numpy(framed.ids.astype(np.int64))
    is_new = torch.from_numpy(framed.scored)[piece.known :]
    modality = torch.from_numpy(framed.modality)
    logits = learner.logits(ids[None], modality[None], None, piece.known)
    learner.learn(logits, ids[piece.known :], is_new)


def _code_ids(
    coder: Coder,
    rows: npt.NDArray[np.int64],
    ids: Ids,
    logits: Tensor,
    mixer: RowMixer | None,
    places: Tensor | None,
) -> npt.NDArray[np.integer]:
    """Code the next ids [R] of some rows [R], under logits [B, V]; returns the ids.

    Args:
        mixer: of a model that mixes.
        places: [B, PLACES] of the rows' next ids, for the mixer.
    """
    if isinstance(coder, BitEncoder | BitDecoder):
        assert mixer is not None
        assert places is not None
        return mixer.code(coder, rows, ids, logits, places)
    probabilities = logits.double().softmax(dim=1).cpu().numpy()[rows]  # [R, V]
    return coder.code(ids, probabilities)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads: another number may round the products of PyTorch otherwise."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
