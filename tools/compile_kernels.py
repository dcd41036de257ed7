"""Compile every kernel, so that the first use of a model does not have to: `make setup` runs it.

    python -m bytelm.tools.compile_kernels

Kernels are the same for all models, and are kept beside their source (`model/numba_kernels.py`).
Takes half a minute on one core, and some seconds where they are kept already.
"""

from __future__ import annotations

import torch

from bytelm.language_model import LanguageModel
from bytelm.modalities.base import Header
from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.dataset_info import DatasetInfo

STAGE = StageConfig(width=16, layers=1, heads=2)
CONFIG = ModelConfig(
    (STAGE, STAGE), (8,), context=256, codec_features=True, output_mixing=True, ngram_table_size=16
)
INFO = DatasetInfo(
    views={"text": "utf8", "image": "raster"},
    headers={"image": [Header(2, 2, 3)]},
    pairs=frozenset(),
    modalities=frozenset({"text", "image"}),
)


def compile_kernels() -> None:
    """Draw, compress and restore with an untrained model that has every option with a kernel."""
    torch.manual_seed(0)
    model = LanguageModel(Megabyte(CONFIG).eval(), INFO)
    model.generate("image", size=(2, 2))
    model.decompress(model.compress(b"bytes"))


if __name__ == "__main__":
    compile_kernels()
