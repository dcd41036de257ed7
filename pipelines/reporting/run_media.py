"""The sections of a run's page that are looked at and listened to: samples and surprise maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bytelm.modalities.base import Sample
from bytelm.pipelines.checkpoints.load import load_model
from bytelm.pipelines.reporting.drawn_samples import newest_samples, read_drawn_samples
from bytelm.pipelines.reporting.gallery import MAX_REAL, gallery
from bytelm.pipelines.reporting.picked_documents import first_samples
from bytelm.pipelines.reporting.run_data import RunData
from bytelm.pipelines.reporting.run_view import MediaSection
from bytelm.pipelines.reporting.surprise_section import surprise_section
from bytelm.pipelines.shards.reader import open_set


def media_sections(
    run: RunData, evaluation: Mapping[str, Any] | None
) -> tuple[list[MediaSection], list[str]]:
    """The sections of samples and of surprise maps, and lines about what is missing.

    Args:
        evaluation: the documents to choose from; None gives no surprise maps.
    """
    sections: list[MediaSection] = []
    missing: list[str] = []
    newest = newest_samples(run.folder)
    if newest is None:
        missing.append(
            "the run has no samples: train with train.sample_every, or see `bytelm generate`"
        )
    else:
        step, folder = newest
        drawn, problems = read_drawn_samples(folder)
        missing += problems
        if drawn:
            title = f"Samples at step {step:,}"
            sections.append(MediaSection("samples", title, gallery(drawn, _real_images(run))))
    if evaluation and evaluation.get("documents"):
        try:
            model, info = load_model(run.folder)
            split = evaluation["about"]["split"]
            maps = surprise_section(model, info, evaluation["documents"], split)
            if maps:
                sections.append(MediaSection("surprise", "What surprises the model", maps))
        except ValueError as error:
            missing.append(f"surprise maps need the model: {error}")
    return sections, missing


def _real_images(run: RunData) -> list[Sample]:
    """The first images of the sets' `val` splits, to be shown beside the generated ones."""
    found: list[Sample] = []
    for entry in run.sets:
        if entry.report is not None:
            wanted = MAX_REAL - len(found)
            found += first_samples(open_set(entry.path), "val", "image", wanted)
    return found
