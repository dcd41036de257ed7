"""Settings with which each modality is drawn unless a user says otherwise.

A calibrated model has its own (`calibration.py`). Those of other models were chosen by measurement
(docs/log.md), as those whose files are nearest to real ones: at temperature 1 the errors of a small
model add up, until an image is noise. What a mixture draws behind an image's beginning errs on the
other side: it costs less than files do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bytelm.model.decoding.row_drawer import draws_from_mixture
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.dataset_info import FINISHED, NEW, DatasetInfo

DEFAULT_SAMPLING: Mapping[str, Sampling] = {
    "text": Sampling(min_p=0.05),
    "image": Sampling(temperature=0.9),
    "audio": Sampling(temperature=0.9),
}
"""By modality, of a model that is not calibrated."""
MIXED_IMAGE_SAMPLING = Sampling(temperature=1.08)
"""The same for an image that a mixture finishes (`draws_from_mixture`)."""


@dataclass(frozen=True)
class SamplingChoices:
    """Values that a user gives in place of the default ones; None leaves the default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def over(self, default: Sampling) -> Sampling:
        """The default with the values that are given.

        Raises:
            ValueError: for a value out of range.
        """
        return Sampling(
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_k=default.top_k if self.top_k is None else self.top_k,
            top_p=default.top_p if self.top_p is None else self.top_p,
            min_p=default.min_p if self.min_p is None else self.min_p,
        )


def uncalibrated_sampling(model: Megabyte, modality: str, prompt_bytes: int) -> Sampling:
    """The settings for a payload behind its first `prompt_bytes`, of a model without its own."""
    if modality == "image" and draws_from_mixture(model, prompt_bytes):
        return MIXED_IMAGE_SAMPLING
    return DEFAULT_SAMPLING[modality]


def default_sampling(
    model: Megabyte, info: DatasetInfo, modality: str, prompt_bytes: int
) -> Sampling:
    """The settings of a model for a payload behind its first `prompt_bytes`; 0 for a new payload.

    Calibration lets the mixture finish images. Where the network finishes one alone, since the
    prompt is short or on a GPU, the calibrated settings are those of new images, which it draws.
    """
    calibrated = info.sampling.get(modality)
    if calibrated is None:
        return uncalibrated_sampling(model, modality, prompt_bytes)
    is_alone = model.config.output_mixing and not draws_from_mixture(model, prompt_bytes)
    is_new = prompt_bytes == 0 or (modality == "image" and is_alone)
    values = calibrated[NEW if is_new else FINISHED]
    return Sampling(values["temperature"], int(values["top_k"]), values["top_p"], values["min_p"])
