"""Settings with which each modality is drawn unless a user says otherwise.

They were chosen by measurement (docs/log.md), as those whose files are nearest to real ones: at
temperature 1 the errors of a small model add up, until an image is noise.
"""

from __future__ import annotations

from collections.abc import Mapping

from bytelm.model.decoding.sampling import Sampling

DEFAULT_SAMPLING: Mapping[str, Sampling] = {
    "text": Sampling(min_p=0.05),
    "image": Sampling(temperature=0.9),
    "audio": Sampling(temperature=0.9),
}
"""By modality."""


def sampling_for(
    modality: str,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Sampling:
    """The settings that a user gives, and the modality's defaults in place of None.

    Raises:
        ValueError: for an unknown modality, or a value out of range.
    """
    if modality not in DEFAULT_SAMPLING:
        known = ", ".join(DEFAULT_SAMPLING)
        raise ValueError(f"no modality {modality!r}: choose one of {known}")
    default = DEFAULT_SAMPLING[modality]
    return Sampling(
        temperature=default.temperature if temperature is None else temperature,
        top_k=default.top_k if top_k is None else top_k,
        top_p=default.top_p if top_p is None else top_p,
        min_p=default.min_p if min_p is None else min_p,
    )
