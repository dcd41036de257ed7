"""Contents of a decoder's rows: their ids, and the codec features and modality after them.

Shapes:
    B   rows of the decoder      R   some of them
    J   codec features of an id
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.model.codec_features.incremental import BatchFeatures
from bytelm.model.codec_features.vectorized import compute_codec_features, compute_places
from bytelm.model.megabyte import Megabyte


class DecodedRows:
    """Ids of B rows, each one document from its start, with room for whole patches.

    Args:
        length: the most ids that a row can hold.
    """

    def __init__(self, model: Megabyte, batch: int, length: int) -> None:
        self._model = model
        self._patch = model.config.patch
        self.lookback = model.lookback_bytes
        room = (length // self._patch + 1) * self._patch  # the last patch is not yet complete
        self.ids = model.lm_head.weight.new_full(
            (batch, self.lookback + room), model.config.pad_id, dtype=torch.int64
        )
        """[B, lookback + room] int64, `lookback` times -1 for the start of the document first."""
        self.ids[:, : self.lookback] = -1
        self.held = np.zeros(batch, np.int64)
        """[B], ids in each row."""
        self.modality = np.zeros(batch, np.int64)
        """[B], of each row's last id."""
        self.is_aligned = True
        """Whether all rows hold equally many ids."""
        self._features: BatchFeatures | None = None
        self._no_features = np.zeros((batch, 0), np.int16)

    def begin(self, prompts: Sequence[Tensor]) -> None:
        """Hold a prompt in each row, in place of what it held."""
        self.held = np.array([len(prompt) for prompt in prompts], np.int64)
        self.is_aligned = bool((self.held == self.held[0]).all())
        for row, prompt in zip(self.ids, prompts, strict=True):
            row[self.lookback : self.lookback + len(prompt)] = prompt
        if self._model.config.codec_features:
            self._features = BatchFeatures(len(prompts), self._patch, self.ids.shape[1])
            for number, prompt in enumerate(prompts):
                self._features.push_row(number, prompt)

    def with_same_prompts(self) -> list[list[int]]:
        """Numbers of the rows that hold the same ids of the same modality, together."""
        rows: dict[tuple[bytes, int], list[int]] = {}
        for row, (ids, held) in enumerate(zip(self.ids.cpu().numpy(), self.held, strict=True)):
            prompt = ids[self.lookback : self.lookback + held].tobytes()
            rows.setdefault((prompt, int(self.modality[row])), []).append(row)
        return list(rows.values())

    def push_features(self, new_ids: Tensor) -> None:
        """Read an id of each row, [B], for the codec features of the next one."""
        if self._features is not None:
            self._features.push(new_ids)

    def codec_features(self) -> npt.NDArray[np.int16]:
        """Codec features of each row's next id, [B, J]; J = 0 for a model without."""
        return self._no_features if self._features is None else self._features.state.features

    def places(self) -> Tensor:
        """Places of each row's next id in its payload, [B, PLACES], for a model that mixes."""
        assert self._features is not None
        return self._features.places()

    def prompt_features(self, row: int) -> Tensor:
        """Codec features of all ids of a row, [ids, J]."""
        ids = self.ids[row : row + 1, self.lookback :]
        one_document = torch.zeros_like(ids[:, :1])
        return compute_codec_features(ids, one_document, self._patch)[0]

    def prompt_places(self, row: int) -> Tensor:
        """Places of the ids that a row holds in their payloads, [ids, PLACES]."""
        ids = self.ids[row : row + 1, self.lookback :]
        places = compute_places(ids, torch.zeros_like(ids[:, :1]), self._patch)[0]
        return places[: self.held[row]]

    def set_modality(self, modality: Tensor | None) -> None:
        """Check and keep the modality of each row's last id, [B]."""
        checked = self._model.check_modality(modality, torch.Size([len(self.held)]))
        self.modality = checked.cpu().contiguous().numpy()
