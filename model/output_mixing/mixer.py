"""Output mixing over whole documents, over rows that are coded, and over rows that are drawn.

Shapes:
    B rows of a decoder    n ids    V ids of the vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm.model.codec_features.layout import KIND, SIZE
from bytelm.model.codec_features.state import NO_PAYLOAD
from bytelm.model.output_mixing import kernels, predictors
from bytelm.model.output_mixing.bit_coder import IDLE_CODER, BitCoder
from bytelm.model.output_mixing.state import (
    PREDICTION,
    MixerState,
    PredictorState,
    new_mixers,
    new_predictors,
)

LEAST_PROMPT = 1_024
"""Payload bytes of a prompt from which its mixture is drawn from."""
ROWS_OF_THREAD = 2
"""Fewest rows that are drawn for which a thread is worth its start."""


class DocumentMixer:
    """Mixes documents that are read one after another.

    Args:
        length: the most ids of a document.
    """

    def __init__(self, length: int) -> None:
        self._predictors, self._mixers = _compiled_states(1, length)

    def nats(self, logits: Tensor, ids: Tensor, places: Tensor, opens_document: Tensor) -> Tensor:
        """Nats of the next ids under the mixture.

        Args:
            logits: [n, V] of the network.
            ids: [n].
            places: [n, PLACES] int32, see `codec_features.layout`.
            opens_document: [n] bool, whether a document begins with the id.

        Returns:
            [n] float64, on the device of `logits`.
        """
        count = len(ids)
        host_ids = ids.cpu().contiguous().numpy()
        predictions, nats = np.zeros(count, PREDICTION), np.empty(count)
        host_places = places.cpu().contiguous().numpy()
        rows = np.zeros(count, np.int64)
        predictors.predict_ids(self._predictors, rows, host_ids, host_places, predictions)
        kernels.read_ids(
            self._mixers,
            0,
            IDLE_CODER,
            logits.detach().float().cpu().contiguous().numpy(),
            host_ids,
            predictions,
            opens_document.cpu().contiguous().numpy(),
            nats,
        )
        return torch.from_numpy(nats).to(logits.device)


class RowMixer:
    """Mixes the next ids of a decoder's rows, each one document from its start, or its next piece.

    Args:
        batch: B.
        length: the most ids of a document, as in `DocumentMixer`.
    """

    def __init__(self, batch: int, length: int) -> None:
        self._predictors, self._mixers = _compiled_states(batch, length)

    def code(
        self,
        coder: BitCoder,
        rows: npt.NDArray[np.int64],
        ids: npt.NDArray[np.uint16],
        logits: Tensor,
        places: Tensor,
    ) -> npt.NDArray[np.int64]:
        """Code the next ids of rows under the mixture, one after another, and take them.

        An encoder may take many ids of a row at once, a decoder one of each. Both run the same
        kernels: others may round otherwise.

        Args:
            rows: [n] whose id each is.
            ids: [n]; a decoder reads none of them.
            logits: [n, V] of the network.
            places: [n, PLACES] int32.

        Returns:
            the ids, which a decoder reads.
        """
        coded = ids.astype(np.int64)
        host_logits = logits.float().cpu().contiguous().numpy()
        predictions = np.empty(len(rows), PREDICTION)
        predictors.predict_ids(self._predictors, rows, coded, places.numpy(), predictions)
        state = coder.state_for(len(rows))
        kernels.code_ids(self._mixers, state, rows, coded, host_logits, predictions)
        self._predictors.rows["id"][rows] = coded  # of a row's ids the last one stays
        return coded


class DrawingMixer:
    """Mixes the distributions of ids that are drawn, by what the prompt of each row taught.

    What is drawn adds to the bytes that predictors look back at. Weights, counts and maps stay as
    they were behind the prompt: learning from its own draws makes a mixture draw the same again.
    Rows whose prompt is short, or less likely under the mixture than under the network alone, are
    drawn from the network.

    Args:
        batch: B.
        length: the most ids of a document, as in `DocumentMixer`.
    """

    def __init__(self, batch: int, length: int) -> None:
        self._predictors, self.learned = _compiled_states(batch, length)
        """Mixtures as prompts left them; rows of one prompt and thread share the first one's."""
        self.is_mixed = np.zeros(batch, np.bool_)
        """[B] whether the row's mixture is used, known behind its prompt."""
        self._learned_rows = np.arange(batch)  # [B] of `learned`
        self._last_bytes = np.zeros((batch, 2), np.int64)
        threads = max(1, min(torch.get_num_threads(), batch // ROWS_OF_THREAD))
        self._parts = [_Part(rows) for rows in np.array_split(np.arange(batch), threads)]
        self._threads = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def read(self, rows: Sequence[int], ids: Tensor, logits: Tensor, places: Tensor) -> None:
        """Take the prompt that some rows have in common, and learn from it.

        Args:
            rows: their numbers.
            ids: [n] int64.
            logits: [n, V] of the network.
            places: [n, PLACES] int32.
        """
        host_ids, host_places = ids.numpy(), places.numpy()
        first = rows[0]
        of_ids, nats = np.full(len(ids), first), np.empty(len(ids))
        predictions = np.empty(len(ids), PREDICTION)
        predictors.predict_ids(self._predictors, of_ids, host_ids, host_places, predictions)
        opens_document = np.arange(len(ids)) == 0
        arguments = logits.numpy(), host_ids, predictions, opens_document, nats
        kernels.read_ids(self.learned, first, IDLE_CODER, *arguments)
        for array in self._predictors:
            array[rows[1:]] = array[first]
        self._share_learned(np.array(rows))
        of_first = self.learned.rows[first]
        self._last_bytes[rows] = of_first["byte_before"], of_first["byte"]
        is_begun = len(ids) > 0 and host_places[-1, KIND] != NO_PAYLOAD
        begun = host_places[-1, SIZE] + 1 if is_begun else 0  # bytes of the payload to finish
        if begun >= LEAST_PROMPT:
            of_network = F.cross_entropy(logits[-begun:], ids[-begun:], reduction="sum")
            self.is_mixed[rows] = nats[-begun:].sum() < of_network.item()

    def _share_learned(self, rows: npt.NDArray[np.int64]) -> None:
        """Let every thread's first of some rows hold what the very first of them has learned.

        A copy is 25 MB for rows of 12,544 ids. Threads write beside it what they compute.
        """
        for part in self._parts:
            of_part = np.intersect1d(rows, part.rows)
            if len(of_part) > 0:
                self._learned_rows[of_part] = of_part[0]
                if of_part[0] != rows[0]:
                    for array in self.learned:
                        array[of_part[0]] = array[rows[0]]

    def mix(self, drawn: Tensor | None, logits: Tensor, places: Tensor) -> None:
        """Make the network's logits of every row's next id, [B, V], those of the mixture.

        Args:
            drawn: [B], each row's last id; None behind the prompts.
            places: [B, PLACES] int32.
        """
        last_ids = np.full(len(logits), -1)
        if drawn is not None:
            last_ids = self._predictors.rows["id"] = drawn.numpy()
            self._last_bytes[:, 0] = self._last_bytes[:, 1]
            self._last_bytes[:, 1] = last_ids
        of_rows = last_ids, logits.numpy(), places.numpy()
        first, *others = self._parts
        running = []
        if self._threads is not None:
            running = [self._threads.submit(self._mix_part, part, *of_rows) for part in others]
        self._mix_part(first, *of_rows)
        for part in running:
            part.result()

    def _mix_part(
        self,
        part: _Part,
        last_ids: npt.NDArray[np.int64],
        logits: npt.NDArray[np.float32],
        places: npt.NDArray[np.int32],
    ) -> None:
        """`mix` some of the rows."""
        rows, at, predictions = part.rows, part.slice, part.predictions
        predictors.predict_ids(self._predictors, rows, last_ids[at], places[at], predictions)
        learned = self.learned, self._learned_rows[at], self._last_bytes[at]
        kernels.mix_logits(*learned, logits[at], predictions, self.is_mixed[at], part.tree)


class _Part:
    """Rows [R], one behind another, that a thread mixes, and the space that it takes for them."""

    def __init__(self, rows: npt.NDArray[np.int64]) -> None:
        self.rows = rows
        self.slice = slice(rows[0], rows[-1] + 1)
        self.predictions = np.empty(len(rows), PREDICTION)
        self.tree = np.empty(kernels.TREE, np.float32)


def _compiled_states(batch: int, length: int) -> tuple[PredictorState, MixerState]:
    """New states of the predictors and mixers of rows, whose kernels are compiled."""
    predictors.compile_kernels()
    kernels.compile_kernels()
    return new_predictors(batch, length), new_mixers(batch, length)


def shift_places(places: Tensor, starts: int | npt.NDArray[np.int64]) -> None:
    """Make places in pieces of payloads places in the whole payloads.

    Args:
        places: [n, PLACES] int32, written.
        starts: bytes before each of these pieces, [n], or before all of them.
    """
    host = places.numpy()
    host[:, SIZE] += starts * (host[:, KIND] != NO_PAYLOAD)


def mixing_bytes(length: int) -> int:
    """Bytes of memory that the mixing of a row takes, of documents of at most `length` ids."""
    states = new_predictors(1, length), new_mixers(1, length)
    return sum(array.nbytes for state in states for array in state)
