"""One sample scored alone, as `bytelm evaluate` scores it, by plain scoring and in fp32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Bytes, Header, Sample
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.evaluation.document_scoring import score_in_order
from bytelm.pipelines.evaluation.windows import Document


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
    payload = MODALITIES[sample.modality].to_view(sample, view, model.config.patch)
    return payload_nats(model, sample.modality, sample.header, view, payload, before_row)


def payload_nats(
    model: Megabyte,
    modality: str,
    header: Header,
    view: str,
    payload: Bytes,
    before_row: Callable[[], object] = lambda: None,
) -> npt.NDArray[np.float64]:
    """[n] nats, -log p of each byte of a payload [n], or of the beginning of one, as `sample_nats`.

    Args:
        header: header of the whole payload.
    """
    segment = framing.Segment(MODALITIES[modality], header, view, payload.size)
    document = Document([segment], [payload])
    scored = score_in_order(document, model, "fp32", before_window=before_row)
    return scored.nats[scored.framed.payload]
