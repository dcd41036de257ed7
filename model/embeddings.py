"""Input embeddings of a stage: segment starts, patch encoder, n-grams, codec features.

Shapes:
    S   positions of a stage laid flat        d   width of the embedding of one byte
    b   bytes in a position of the stage      D   width of the stage
    J   codec features of a position          V   vocabulary
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bytelm.model.codec_features.layout import PHASE

FEATURE_WIDTH = 16
"""Width of the embedding of one codec feature."""


class StartEmbedding(nn.Module):
    """The trainable input of the first position of every segment."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        """Put the start into x [S, D] wherever `first` [S] is true."""
        return torch.where(first[:, None], self.weight, x)


class PatchEncoder(nn.Module):
    """Causal convolutions over bytes: h <- h + ReLU(W_f * h) for filters f of 3, 5 and 7.

    The paper names the filters and leaves the rest open. Input before a document's start is zero
    and stays zero, since the filters have no bias; so the REACH bytes before a patch determine its
    output, as the whole document would.
    """

    FILTERS = (3, 5, 7)
    REACH = sum(size - 1 for size in FILTERS)
    """Bytes before a patch that its output depends on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(width, width, f, bias=False) for f in self.FILTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Encode the embeddings of a patch and of the REACH bytes before it.

        x: [S, REACH + b, d]. Returns [S, b, d].
        """
        x = rearrange(x, "S b d -> S d b")
        for size, layer in zip(self.FILTERS, self.layers, strict=True):
            x = x[:, :, size - 1 :] + F.relu(layer(x))
        return rearrange(x, "S d b -> S b d")


class NgramEmbed(nn.Embedding):
    """Hashed embeddings of the 2-, 3- and 4-grams before a position (BLT, arXiv 2412.09871).

    An n-gram's row in its table is its polynomial hash mod 2^31 - 1, mod the rows of the table. An
    n-gram that reaches over the start of the document gives zeros. In a model with codec features
    pixels and samples give zeros too: the features predict them better, and their many n-grams
    would crowd those of text out of the tables.
    """

    LENGTHS = (2, 3, 4)
    _FACTOR = 1_540_483_477
    _PRIME = 2**31 - 1

    def __init__(self, table_size: int, width: int) -> None:
        super().__init__(len(self.LENGTHS) * table_size, width)
        self.table_size = table_size

    def forward(self, preceding: Tensor, codec_features: Tensor | None = None) -> Tensor:
        """Embed the n-grams that end right before each position.

        Args:
            preceding: [S, 4 or more] the ids before each position; -1 before the document.
            codec_features: [S, J] of each position, in a model that has them.
        Returns:
            [S, 3 * width].
        """
        rows = []
        for table, n in enumerate(self.LENGTHS):
            hashed = torch.zeros_like(preceding[:, 0])  # [S]
            for id_ in preceding[:, -n:].unbind(dim=1):
                hashed = (hashed * self._FACTOR + id_ + 1) % self._PRIME
            rows.append(hashed % self.table_size + table * self.table_size)
        is_none = torch.stack([preceding[:, -n] for n in self.LENGTHS], dim=1) < 0  # [S, 3]
        if codec_features is not None:
            is_none |= codec_features[:, PHASE, None] >= 0
        embedded = super().forward(torch.stack(rows, dim=1)).masked_fill(is_none[..., None], 0.0)
        return rearrange(embedded, "S n d -> S (n d)")


class FeatureEmbed(nn.Embedding):
    """One embedding for each value of a codec feature, 0 to 255; NONE gives zeros."""

    def __init__(self) -> None:
        super().__init__(256, FEATURE_WIDTH)

    def forward(self, codec_features: Tensor) -> Tensor:
        """Codec features [S, J] to [S, J * FEATURE_WIDTH]."""
        embedded = super().forward(codec_features.clamp(min=0).int())
        embedded = embedded.masked_fill(codec_features[..., None] < 0, 0.0)
        return rearrange(embedded, "S J d -> S (J d)")


@torch.no_grad()
def mix_waves(rows: Tensor, std: float) -> None:
    """Make the initial rows of near bytes alike, in place.

    Half of the variance of each channel becomes that of a sine over the byte's value, with a random
    phase and a random number of periods over the 256 values: 1/2 to 16, uniform in the logarithm.

    Args:
        rows: [..., V, D] of standard deviation `std`, which they keep.
    """
    periods, phase = rows.new_empty(2, rows.shape[-1]).uniform_()
    periods = 0.5 * 32.0**periods
    value = torch.arange(256, dtype=rows.dtype, device=rows.device)[:, None] / 256
    waves = 2.0**0.5 * torch.sin(2 * torch.pi * (periods * value + phase))  # [256, D], variance 1
    byte_rows = rows[..., :256, :]
    byte_rows.add_(waves, alpha=std).mul_(0.5**0.5)
