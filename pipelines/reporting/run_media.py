"""The sections of a run's page that are looked at and listened to: samples and surprise maps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from bytelm.modalities.base import Sample
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.load import load_model
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.reporting.drawn_samples import (
    DrawnSample,
    newest_samples,
    read_drawn_samples,
)
from bytelm.pipelines.reporting.fresh_samples import draw_fresh_samples
from bytelm.pipelines.reporting.gallery import MAX_REAL, gallery
from bytelm.pipelines.reporting.picked_documents import first_samples
from bytelm.pipelines.reporting.run_data import RunData
from bytelm.pipelines.reporting.run_view import MediaSection
from bytelm.pipelines.reporting.surprise_section import surprise_section
from bytelm.pipelines.shards.reader import ShardSet, open_set


def media_sections(
    run: RunData, evaluation: Mapping[str, Any] | None, may_compute: bool = True
) -> tuple[list[MediaSection], list[str]]:
    """The sections of samples and of surprise maps, and lines about what is missing.

    Args:
        evaluation: the documents to choose from; None gives no surprise maps.
        may_compute: whether the model may draw samples and score documents, within two minutes;
            otherwise only the samples of the run's folder are shown.
    """
    sections: list[MediaSection] = []
    sets = [open_set(entry.path) for entry in run.sets if entry.report is not None]
    model, info, missing = None, None, []
    if may_compute and run.checkpoint_steps:
        try:
            model, info = load_model(run.folder)
        except ValueError as error:
            missing.append(f"new samples and surprise maps need the model: {error}")
    step, drawn, problems = _samples(run, model, info, sets)
    missing += problems
    if drawn:
        real, problems = _real_images(sets)
        missing += problems
        title = f"Samples at step {step:,}"
        sections.append(MediaSection("samples", title, gallery(drawn, real)))
    if model and info and evaluation:
        about, documents = evaluation["about"], evaluation.get("documents", ())
        found_sets = scored_sets(about["sets"], sets)
        maps = surprise_section(model, info, documents, found_sets, about["split"])
        if maps:
            sections.append(MediaSection("surprise", "What surprises the model", maps))
    return sections, missing


def _samples(
    run: RunData, model: Megabyte | None, info: DatasetInfo | None, sets: Sequence[ShardSet]
) -> tuple[int, list[DrawnSample], list[str]]:
    """Step and samples of the newest checkpoint: the run's own, or new ones where it has none or
    none of some modality."""
    newest_step = run.checkpoint_steps[0] if run.checkpoint_steps else 0
    kept_step, folder = newest_samples(run.folder) or (-1, None)
    kept, kept_problems = read_drawn_samples(folder) if folder else ([], [])
    problems: list[str] = []
    if model and info and (kept_step < newest_step or _lacks_modality(kept, info)):
        try:
            drawn, problems = draw_fresh_samples(model, info, sets)
        except ValueError as error:  # a damaged set
            drawn, problems = [], [f"no samples were drawn: {error}"]
        if drawn:
            return newest_step, drawn, problems
    if folder is None:
        hint = "the run has no samples: train with train.sample_every, or see `bytelm generate`"
        return newest_step, [], [*problems, hint]
    return kept_step, kept, [*problems, *kept_problems]


def _lacks_modality(drawn: Sequence[DrawnSample], info: DatasetInfo) -> bool:
    """Whether a modality that the model learned has no sample, as where a run had little time."""
    return not set(info.modalities) <= {one.sample.modality for one in drawn}


def scored_sets(
    entries: Sequence[Mapping[str, Any]], sets: Sequence[ShardSet]
) -> dict[str, ShardSet]:
    """The sets of an evaluation that can be read, by their paths there.

    A relative path may have been that of another working folder, so the run's own sets are found by
    their root hashes.
    """
    by_root = {shard_set.root: shard_set for shard_set in sets}
    found = {}
    for entry in entries:
        path, root = str(entry["path"]), str(entry["root"])
        with contextlib.suppress(ValueError):
            shard_set = by_root.get(root) or open_set(path)
            if shard_set.root == root:
                found[path] = shard_set
    return found


def _real_images(sets: Sequence[ShardSet]) -> tuple[list[Sample], list[str]]:
    """The first images of the sets' `val` splits, to be shown beside the generated ones."""
    found: list[Sample] = []
    try:
        for shard_set in sets:
            found += first_samples(shard_set, "val", "image", MAX_REAL - len(found))
    except ValueError as error:
        return found, [f"real images: {error}"]
    return found, []
