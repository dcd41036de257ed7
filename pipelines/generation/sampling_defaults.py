"""Settings with which each modality is drawn unless a user says otherwise.

A calibrated model has its own (`calibration.py`). Those of other models were chosen by measurement
(docs/log.md), as those whose files are nearest to real ones: at temperature 1 the errors of a small
model add up, until an image is noise.
"""

from __future__ import annotations

from collections.abc import Mapping

from bytelm.model.decoding.sampling import Sampling
from bytelm.pipelines.data.dataset_info import FINISHED, NEW, DatasetInfo

DEFAULT_SAMPLING: Mapping[str, Sampling] = {
    "text": Sampling(min_p=0.05),
    "image": Sampling(temperature=0.9),
    "audio": Sampling(temperature=0.9),
}
"""By modality, of a model that is not calibrated."""


def default_sampling(info: DatasetInfo, modality: str, *, is_finished: bool) -> Sampling:
    """The settings of a model for payloads that go on from a prompt, or for new ones.

    Raises:
        ValueError: for an unknown modality.
    """
    if modality not in DEFAULT_SAMPLING:
        known = ", ".join(DEFAULT_SAMPLING)
        raise ValueError(f"no modality {modality!r}: choose one of {known}")
    calibrated = info.sampling.get(modality)
    if calibrated is None:
        return DEFAULT_SAMPLING[modality]
    values = calibrated[FINISHED if is_finished else NEW]
    return Sampling(values["temperature"], int(values["top_k"]), values["top_p"], values["min_p"])


def sampling_for(
    info: DatasetInfo,
    modality: str,
    *,
    is_finished: bool,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Sampling:
    """The settings that a user gives, and those of `default_sampling` in place of None.

    Raises:
        ValueError: for an unknown modality, or a value out of range.
    """
    default = default_sampling(info, modality, is_finished=is_finished)
    return Sampling(
        temperature=default.temperature if temperature is None else temperature,
        top_k=default.top_k if top_k is None else top_k,
        top_p=default.top_p if top_p is None else top_p,
        min_p=default.min_p if min_p is None else min_p,
    )
