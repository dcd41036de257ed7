"""A copy of a model that learns from a document while the document is coded.

The document is read in windows that grow, and then move on. After each one the copy takes a step of
Adam (arXiv:1412.6980) on the mean nats of the window's new ids, as in dynamic evaluation
(arXiv:1709.07432). A decoder takes the same steps, since it knows the ids by then.

Shapes:
    n ids of a window    m of them, the last ones    V vocabulary
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte

BETAS = 0.9, 0.99
"""Decay of Adam's means: a document has tens to thousands of steps."""
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Adaptation:
    """Settings of learning. A decoder needs those of the encoder."""

    rate: float
    """Learning rate."""
    window: int
    """Ids of a window at most."""
    step: int
    """New ids of a window, behind those of earlier ones."""
    preset: str = ""
    """Preset and seed of random weights that learn, as `preset:modern-demo:0`."""

    def window_length(self, config: ModelConfig) -> int:
        """Ids of a window of a model at most: whole patches of its context."""
        return min(max(self.window // config.patch, 4) * config.patch, config.context)

    def step_length(self, config: ModelConfig) -> int:
        """New ids of a window of a model: whole patches, half of a window at most, but with room
        for a preamble."""
        patch, window = config.patch, self.window_length(config)
        most = max(window // 2 // patch * patch, min(window, 4 * patch))
        return min(max(self.step // patch, 4) * patch, most)


TRAINED, UNTRAINED = Adaptation(3e-4, 4096, 1024), Adaptation(3e-3, 2048, 512)
"""Settings for a trained model, and for one whose weights are random."""


class Learner:
    """A copy of a model that learns from one document.

    Its figures are the same to the last bit in each run on a CPU with one thread.
    """

    def __init__(self, model: Megabyte, adaptation: Adaptation) -> None:
        self.model = copy.deepcopy(model).requires_grad_()
        self.model.config = replace(model.config, output_mixing=False)
        rate = adaptation.rate
        self._optimizer = torch.optim.Adam(self.model.parameters(), rate, BETAS, fused=True)

    def logits(
        self, ids: Tensor, modality: Tensor, codec_features: Tensor | None, first: int
    ) -> Tensor:
        """Logits [m, V] of the ids of a window from `first` on, with what `learn` needs.

        Arguments are those of `Megabyte.forward` for a batch of one row.
        """
        with torch.enable_grad():
            return self.model.last_logits(ids, modality, codec_features, first)

    def learn(self, logits: Tensor, ids: Tensor, is_new: Tensor) -> None:
        """Take a step on the new ids of a window.

        Args:
            logits: [m, V] of `logits`, by the weights as they are.
            ids: [m] int64.
            is_new: [m] bool; with none the weights stay.
        """
        if not is_new.any():
            return
        self._optimizer.zero_grad()
        F.cross_entropy(logits[is_new], ids[is_new]).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self._optimizer.step()
