"""Speed of codec features: of whole rows, through the loader, and id by id.

    python -m bytelm.tools.benchmarks.features [--megabytes N]

Prints a JSON line a figure: `name`, `value`, `unit`, `reference` (the aim) and `ratio` (value /
reference). The rows are those of the demo's texts, images and sounds, of 8,192 ids in patches
of 16. Kernels are compiled before. Takes about a minute.

    features/MODALITY              MB/s of payload, on one core
    features/MODALITY/loader       the same through the loader with one worker process, which reads,
                                   checks and frames them too
    features/MODALITY/step/ROWS    us a byte and row where ROWS rows are read id by id
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import torch

import bytelm
from bytelm.model.codec_features.incremental import BatchFeatures
from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import Loader, make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.tools.benchmarks.measure import Figure, print_figures, seconds_of
from bytelm.tools.repository import DEMO_FILES

MODALITIES = ("text", "image", "audio")
ROW_LENGTH, PATCH = 8192, 16
BATCH_ROWS = 8
STEP_ROWS = (1, 16, 256)
STEPS = 512
ROUNDS = 3
FEATURES_AIM, LOADER_AIM = 6.0, 5.0
"""MB/s."""
STEP_AIM = 2.0
"""us a byte and row."""


def feature_figures(megabytes: float) -> Iterator[Figure]:
    """Figures of each modality, on `megabytes` of ids; the best of ROUNDS rounds."""
    torch.set_num_threads(1)
    batches = max(1, round(megabytes * 1e6 / (BATCH_ROWS * ROW_LENGTH)))
    for modality in MODALITIES:
        with tempfile.TemporaryDirectory() as folder:
            bytelm.prepare(DEMO_FILES / modality, Path(folder) / "set")
            source = Source(bytelm.open_set(Path(folder) / "set"))
            plan = Plan([source], PlanConfig(ROW_LENGTH, PATCH, vars(ViewsConfig())))
            read = list(islice(_loader(plan, workers=0, codec_patch=0), batches))
            payload = sum(int(batch.payload.sum()) for batch in read) / 1e6
            seconds = min(seconds_of(partial(_compute, read)) for _ in range(ROUNDS))
            yield Figure(f"features/{modality}", payload / seconds, "MB/s", FEATURES_AIM)
            seconds = min(_loader_seconds(plan, batches) for _ in range(ROUNDS))
            yield Figure(f"features/{modality}/loader", payload / seconds, "MB/s", LOADER_AIM)
        for rows in STEP_ROWS:
            name = f"features/{modality}/step/{rows}"
            yield Figure(name, _microseconds_of_step(read, rows), "us", STEP_AIM)


def _loader(plan: Plan, workers: int, codec_patch: int) -> Loader:
    rows = TrainingRows(plan, (0, 0), BATCH_ROWS, 1, 0, 1)
    return make_loader(plan, rows, workers, codec_patch=codec_patch)


def _compute(batches: list[Batch]) -> None:
    for batch in batches:
        compute_codec_features(batch.ids, batch.document, PATCH)


def _loader_seconds(plan: Plan, batches: int) -> float:
    """Seconds for which `batches` batches with features are waited for, behind the first one."""
    reading = iter(_loader(plan, workers=1, codec_patch=PATCH))
    next(reading)
    return seconds_of(lambda: [None for _ in islice(reading, batches)])


def _microseconds_of_step(batches: list[Batch], rows: int) -> float:
    """Time of a step of `rows` rows, divided by them, in the middle of the rows."""
    ids = torch.cat([batch.ids for batch in batches]).long()
    ids = ids[torch.arange(rows) % len(ids)]
    begin = (ROW_LENGTH - ROUNDS * STEPS) // 2
    features = BatchFeatures(rows, PATCH, ROW_LENGTH)
    for row in range(rows):
        features.push_row(row, ids[row, :begin])
    steps = iter(ids[:, begin:].t().contiguous())

    def read_ids() -> None:
        for new_ids in islice(steps, STEPS):
            features.push(new_ids)
            features.features()

    return min(seconds_of(read_ids) for _ in range(ROUNDS)) / STEPS / rows * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of codec features.")
    parser.add_argument("--megabytes", type=float, default=4.0, help="of ids, for each modality")
    options = parser.parse_args()
    print_figures(feature_figures(options.megabytes))


if __name__ == "__main__":
    main()
