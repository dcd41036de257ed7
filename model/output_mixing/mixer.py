"""Output mixing over whole documents, and over the rows of a decoder.

Shapes:
    B rows of a decoder    n ids    V ids of the vocabulary
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.model.codec_features.layout import KIND, SIZE
from bytelm.model.codec_features.state import NO_PAYLOAD
from bytelm.model.output_mixing import kernels, predictors
from bytelm.model.output_mixing.bit_coder import IDLE_CODER, BitCoder
from bytelm.model.output_mixing.state import (
    PREDICTION,
    new_mixers,
    new_predictors,
)


class DocumentMixer:
    """Mixes documents that are read one after another.

    Args:
        length: the most ids of a document.
    """

    def __init__(self, length: int) -> None:
        predictors.compile_kernels()
        kernels.compile_kernels()
        self._predictors = new_predictors(1, length)
        self._mixers = new_mixers(1, length)

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
        predictors.compile_kernels()
        kernels.compile_kernels()
        self._predictors = new_predictors(batch, length)
        self._mixers = new_mixers(batch, length)

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
