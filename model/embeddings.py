"""What stands before the blocks of a stage: starts, n-grams, hints, convolutions, waves.

Shapes:
    S   positions of a stage laid flat      d   width of the embedding of one byte
    b   bytes in a position of the stage    D   width of the stage
    J   hints of a position                 V   vocabulary
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bytelm.model.codec_features.layout import PREDICTIONS

FEATURE_WIDTH = 16
"""Of the embedding of each hint."""


class StartEmbedding(nn.Module):
    """The trainable input of the first position of every segment."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        """x [S, D] with the start wherever `first` [S] is true."""
        return torch.where(first[:, None], self.weight, x)


class PatchEncoder(nn.Module):
    """Causal convolutions over bytes: h <- h + ReLU(W_f * h) for filters f of 3, 5 and 7.

    The paper names the filters and leaves the rest open. Zeros stand before a document's start
    and stay zeros, so that a window of the filters' reach gives what the whole document would.
    """

    FILTERS = (3, 5, 7)
    REACH = sum(size - 1 for size in FILTERS)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(width, width, f, bias=False) for f in self.FILTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of a patch and of the 12 bytes before it, [S, 12 + b, d], to [S, b, d]."""
        x = rearrange(x, "S b d -> S d b")
        for size, layer in zip(self.FILTERS, self.layers, strict=True):
            x = x[:, :, size - 1 :] + F.relu(layer(x))
        return rearrange(x, "S d b -> S b d")


class NgramEmbed(nn.Embedding):
    """Tables of the 2-, 3- and 4-grams before a position, found by hash (BLT, arXiv 2412.09871).

    An n-gram's row is its polynomial hash mod 2^31 - 1, mod the number of rows. One that would
    reach over the start of the document gives zeros, and so do pixels and samples where there are
    hints, which say more of them: their n-grams would only fill the tables.
    """

    LENGTHS = (2, 3, 4)
    _FACTOR = 1_540_483_477
    _PRIME = 2**31 - 1

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(len(self.LENGTHS) * rows, width)
        self.rows = rows

    def forward(self, before: Tensor, codec_features: Tensor | None = None) -> Tensor:
        """The ids before each position, [S, 4 or more], and its hints [S, J] where the model has
        them, to [S, 3 * width]."""
        row = []
        for table, n in enumerate(self.LENGTHS):
            hashed = torch.zeros_like(before[:, 0])  # [S]
            for id_ in before[:, -n:].unbind(dim=1):
                hashed = (hashed * self._FACTOR + id_ + 1) % self._PRIME
            row.append(hashed % self.rows + table * self.rows)
        is_none = torch.stack([before[:, -n] for n in self.LENGTHS], dim=1) < 0  # [S, 3]
        if codec_features is not None:
            is_none |= codec_features[:, PREDICTIONS - 1 : PREDICTIONS] >= 0
        embedded = super().forward(torch.stack(row, dim=1)).masked_fill(is_none[..., None], 0.0)
        return rearrange(embedded, "S n d -> S (n d)")


class FeatureEmbed(nn.Embedding):
    """A row for each byte; what is none gives zeros."""

    def __init__(self) -> None:
        super().__init__(256, FEATURE_WIDTH)

    def forward(self, codec_features: Tensor) -> Tensor:
        """Hints [S, J] of `hints.py` to [S, J * FEATURE_WIDTH]."""
        embedded = super().forward(codec_features.clamp(min=0).int())
        embedded = embedded.masked_fill(codec_features[..., None] < 0, 0.0)
        return rearrange(embedded, "S J d -> S (J d)")


@torch.no_grad()
def mix_waves(rows: Tensor, std: float) -> None:
    """Gives half of the variance of the rows of bytes to waves over the byte's value.

    rows [..., V, D]: of standard deviation `std`, changed in place. Each channel has a wave of its
    own, with a random phase and, evenly by their logarithms, 1/2 to 16 turns over the 256 values.
    """
    turns, phase = rows.new_empty(2, rows.shape[-1]).uniform_()
    turns = 0.5 * 32.0**turns
    value = torch.arange(256, dtype=rows.dtype, device=rows.device)[:, None] / 256
    waves = 2.0**0.5 * torch.sin(2 * torch.pi * (turns * value + phase))  # [256, D], of variance 1
    of_bytes = rows[..., :256, :]
    of_bytes.add_(waves, alpha=std).mul_(0.5**0.5)
