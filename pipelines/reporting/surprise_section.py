"""The section of a report that shows where in real documents the bits are."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from bytelm.modalities.base import Sample
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.evaluation.sample_scoring import sample_nats
from bytelm.pipelines.reporting.picked_documents import Pick, excerpt, pick_documents, read_pick
from bytelm.pipelines.reporting.surprise_maps import surprise_map
from bytelm.pipelines.runtime.progress import stderr_console
from bytelm.pipelines.shards.reader import ShardSet

SECONDS = 60.0
"""Time for scoring; documents for which there is none left are named instead."""
_NAMES = {"text": "Texts", "image": "Images", "audio": "Sounds"}


class _LateError(Exception):
    """The time for scoring is over."""


def surprise_section(
    model: Megabyte,
    dataset_info: DatasetInfo,
    documents: Sequence[Mapping[str, Any]],
    sets: Mapping[str, ShardSet],
    split: str,
    seconds: float = SECONDS,
) -> Markup:
    """Surprise maps of a typical, the most and the least surprising document of each modality.

    Every picked document is read from its set and a part of it is scored alone. What cannot be
    read, and what there is no time for, has a line in its place.

    Args:
        documents: entries `key`, `set`, `modality`, `bytes`, `bits` of an evaluation of the model.
        sets: the sets that can be read, by the `set` of their documents.
        split: split of the documents.
        seconds: time for scoring.
    Returns:
        Markup for a page with the rules of `media_css`; empty without documents.
    """
    picks = pick_documents(documents)
    if picks:
        message = f"scoring {len(picks)} documents for surprise maps, for at most {seconds:.0f} s"
        stderr_console().print(message, highlight=False, soft_wrap=True)
    deadline = time.monotonic() + seconds
    shown: dict[str, list[Markup]] = {}
    for pick in picks:
        shown.setdefault(pick.modality, []).append(
            _map_of(pick, model, dataset_info, sets, split, deadline)
        )
    return Markup().join(
        Markup('<h3>{}</h3><div class="maps-{}">{}</div>').format(
            name, modality, Markup().join(shown[modality])
        )
        for modality, name in _NAMES.items()
        if modality in shown
    )


def _map_of(
    pick: Pick,
    model: Megabyte,
    dataset_info: DatasetInfo,
    sets: Mapping[str, ShardSet],
    split: str,
    deadline: float,
) -> Markup:
    """One document's map below its title, or the cause why there is none."""
    title = f"{pick.reason}: {pick.key}, {pick.bits_per_byte:.2f} bits/byte as a whole"
    try:
        sample = _read(pick, sets, split)
        part, words = excerpt(sample)
        body = _map_html(part, model, dataset_info, deadline)
    except _LateError:
        body, words = _line("not scored: there was no time left"), ""
    except (ValueError, OSError) as error:  # DamageError is a ValueError
        body, words = _line(f"not shown: {error}"), ""
    return Markup('<section class="map"><h4>{}</h4>{}{}</section>').format(
        title, _line(f"Shown: {words}") if words else "", body
    )


def _read(pick: Pick, sets: Mapping[str, ShardSet], split: str) -> Sample:
    if pick.set_path not in sets:
        raise ValueError(f"the set {pick.set_path} cannot be read")
    sample = read_pick(sets[pick.set_path], split, pick)
    if sample is None:
        raise ValueError(f"{pick.set_path} has no document {pick.key} in {split} any more")
    return sample


def _map_html(
    sample: Sample, model: Megabyte, dataset_info: DatasetInfo, deadline: float
) -> Markup:
    def check_time() -> None:
        if time.monotonic() > deadline:
            raise _LateError

    view = dataset_info.views[sample.modality]
    nats = sample_nats(model, sample, view, check_time)
    return surprise_map(sample, nats / math.log(2), view, model.config.patch).html


def _line(text: str) -> Markup:
    return Markup('<p class="media-facts">{}</p>').format(text)
