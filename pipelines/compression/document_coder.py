"""The coder of documents, whose runs of pieces step together: see `coding`.

B rows of a batch    R rows that code an id in a step    V ids
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.model.adaptation import Adaptation, Learner
from bytelm.model.decoding.decoder import has_compiled_steps
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.bit_coder import BitDecoder, BitEncoder
from bytelm.model.output_mixing.mixer import RowMixer, mixing_bytes, shift_places
from bytelm.pipelines.compression.container import Words
from bytelm.pipelines.compression.documents import Document
from bytelm.pipelines.compression.range_coding import Ids, RangeDecoder, RangeEncoder
from bytelm.pipelines.compression.row_steps import (
    RowGroup,
    Step,
    SteppedRow,
    in_coding_order,
    step_rows,
    steps_of,
    torch_threads,
)
from bytelm.pipelines.compression.runs import Piece, Row, Run, runs_of
from bytelm.pipelines.data.windows import segment_length
from bytelm.pipelines.runtime.compute_threads import map_in_threads

STREAM_IDS = 1 << 15
"""Ids from which on a stream takes no further batch; containers of format 3 depend on it. A stream
costs some ten bytes, a thousandth of what so many ids come to."""
MOST_MIXING_BYTES = 1 << 30
"""Memory of the mixing of a batch: of long documents, as many step together as it has room for."""

STEPPING_THREADS = 4
"""The most threads of an encoder that step rows; mixing keeps up with some eight, and each takes
MOST_LOGIT_BYTES twice."""
MOST_LOGIT_BYTES = 1 << 27
"""Memory of the logits that such a thread computes at once. Those of all rows of a turn are held,
which are half as large as the state of their mixing."""
ENCODED_POSITIONS = 1 << 10
"""Positions of the rows of a turn that are encoded at once."""

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
            group = RowGroup(together)
            steps = steps_of(self.model, group, self.threads, mixer is not None)
            self._code_group(coder, group, steps, mixer, lambda coded: None)

    def code_payloads(self, coder: Coder, batches: Sequence[Sequence[Run]]) -> None:
        """Code bodies with known preambles; a decoder fills the documents' payloads.

        Raises ValueError where a payload does not end where it should.
        """
        for runs in batches:
            mixer = self._new_mixer(len(runs), max(map(self._mixed_ids, runs)))
            learner = None if self.adaptation is None else Learner(self.model, self.adaptation)
            turns = [
                [run.pieces[turn] for run in runs if turn < len(run.pieces)]
                for turn in range(len(runs[0].pieces))
            ]
            if self._can_step_ahead(coder):
                self._encode_turns(coder, turns, mixer)
                continue
            for pieces in turns:
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

    def _can_step_ahead(self, coder: Coder) -> bool:
        """Whether logits may be computed before any id is coded, by other steps than a decoder's.

        An encoder knows all ids. Who learns needs the ids before.
        """
        is_encoder = isinstance(coder, BitEncoder)
        return is_encoder and self.adaptation is None and has_compiled_steps(self.model)

    def _encode_turns(
        self, coder: Coder, turns: Sequence[Sequence[Piece]], mixer: RowMixer | None
    ) -> None:
        """Encode pieces turn by turn: threads step those of this and later turns meanwhile."""
        config = self.model.config
        pieces = [piece for turn in turns for piece in turn]
        longest = max(piece.size for piece in pieces)
        of_row = longest * config.vocab_size * np.dtype(np.float32).itemsize
        threads = min(STEPPING_THREADS, torch.get_num_threads())
        share = -(-len(pieces) // threads)
        size = max(1, min(self.batch, MOST_LOGIT_BYTES // of_row, share))

        def stepped(together: Sequence[Piece]) -> list[SteppedRow]:
            rows = [piece.row(piece.frame(config.patch), config.patch) for piece in together]
            return step_rows(self.model, rows, self.threads)

        parts = [pieces[first : first + size] for first in range(0, len(pieces), size)]
        results = map_in_threads(stepped, parts, threads)
        rows = (row for _, result in results for row in result)
        for turn in turns:
            self._encode_rows(coder, list(itertools.islice(rows, len(turn))), mixer)

    def _encode_rows(
        self, coder: Coder, rows: Sequence[SteppedRow], mixer: RowMixer | None
    ) -> None:
        """Encode the ids of a turn's rows."""
        longest = max(len(row.ids) for row, _, _ in rows)
        for first in range(0, longest, ENCODED_POSITIONS):
            numbers, ids, logits, places = in_coding_order(rows, first, first + ENCODED_POSITIONS)
            _code_ids(coder, numbers, ids, logits, mixer, places)
            self.advance(len(ids))

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
        group = RowGroup([p.row(ids, patch) for p, ids in zip(pieces, framed, strict=True)])
        model = self.model if learner is None else learner.model
        prefilled = 0 if learner is None else group.rows[0].known
        steps = steps_of(model, group, self.threads, mixer is not None, prefilled)
        self._code_group(coder, group, steps, mixer, self.advance)
        for piece, row, ids in zip(pieces, group.rows, framed, strict=True):
            piece.store(row, ids)
        if learner is not None:
            with torch_threads(self.threads):
                _learn(learner, pieces[0], patch)

    def _code_group(
        self,
        coder: Coder,
        group: RowGroup,
        steps: Iterable[Step],
        mixer: RowMixer | None,
        advance: Advance,
    ) -> None:
        """Code in each step the ids [R] of a group's rows that are not known.

        Args:
            mixer: of a model that mixes; its first rows are these.
        """
        is_later = bool(group.starts.any())
        for position, logits, places in steps:
            coded = group.coded(position)  # [R]
            if coded.size == 0:
                continue
            if places is not None and is_later:  # most rows begin their documents
                shift_places(places, group.starts)
            if len(coded) < len(logits):
                taken = torch.from_numpy(coded)
                logits, places = logits[taken], None if places is None else places[taken]
            group.ids[coded, position] = _code_ids(
                coder, coded, group.ids[coded, position], logits, mixer, places
            )
            advance(coded.size)
        group.store()


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
    """Code ids [R] of rows [R], one after another, under logits [R, V]; returns the ids.

    Args:
        mixer: of a model that mixes; a row may stand for many of its ids.
        places: [R, PLACES], for the mixer.
    """
    if isinstance(coder, BitEncoder | BitDecoder):
        assert mixer is not None
        assert places is not None
        return mixer.code(coder, rows, ids, logits, places)
    probabilities = logits.double().softmax(dim=1).cpu().numpy()  # [R, V]
    return coder.code(ids, probabilities)
