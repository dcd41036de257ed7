"""One sample scored alone, as `bytelm evaluate` scores it, by plain scoring and in fp32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Sample
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.evaluation.scoring import nats_of_model
from bytelm.pipelines.evaluation.windows import Document, score_document


def sample_nats(
    model: Megabyte,
    sample: Sample,
    view: str,
    before_row: Callable[[], object] = lambda: None,
) -> npt.NDArray[np.float64]:
    """[n] nats, -log p of each byte of the sample's payload in a view.

    Args:
        before_row: called before each row of the model's context; it may raise to end the scoring.
    Raises:
        ValueError: for a view that the sample does not have.
    """
    codec, patch = MODALITIES[sample.modality], model.config.patch
    payload = codec.to_view(sample, view, patch)
    document = Document([framing.Segment(codec, sample.header, view, payload.size)], [payload])
    compute = nats_of_model(model, "fp32")

    def nats_of(batch: Batch) -> Tensor:
        before_row()
        return compute(batch)

    scored = score_document(document, nats_of, model.config.context, patch)
    return scored.nats[scored.framed.payload]
