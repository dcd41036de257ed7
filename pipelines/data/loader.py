"""Loaders of the rows of a plan, with a bound on the memory of prefetched batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from bytelm.model.codec_features.layout import FEATURES
from bytelm.model.layout import BYTES_PER_PATCH
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.data_workers import WorkerBatches
from bytelm.pipelines.data.plan import Plan
from bytelm.pipelines.data.row_dataset import RowDataset
from bytelm.pipelines.data.samplers import EvaluationRows, TrainingRows

PREFETCH_BYTES = 1 << 26
"""Limit on the bytes of the batches that all workers of a loader together hold ready; each worker
holds at least one batch."""
MAX_PREFETCHED_BATCHES = 16
BYTES_PER_ID = 3
"""An id of 2 bytes and its role."""
TARGET_BYTES = 2
"""The true id of a position, where `ids` have noise."""
FRAME_BYTES_PER_PATCH = 5
"""Document and modality of a patch."""
FEATURE_BYTES_PER_ID = 2 * FEATURES


@dataclass(frozen=True)
class Loader:
    """The batches of a sampler, anew for each iteration."""

    dataset: RowDataset
    rows: TrainingRows | EvaluationRows
    workers: int
    prefetch: int
    """Batches that each worker holds ready."""

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches, with the defaults of `WorkerBatches` where workers read."""
        return self.batches()

    def batches(
        self, timeout: float = math.inf, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Batch]:
        """Iterate over the batches; `timeout` and `should_stop` as in `WorkerBatches`."""
        if self.workers:
            return WorkerBatches(
                self.dataset, self.rows, self.workers, self.prefetch, timeout, should_stop
            )
        return self._read_here()

    def _read_here(self) -> Iterator[Batch]:
        for positions in self.rows:
            batch = self.dataset.__getitems__(positions)
            yield batch.pin_memory() if torch.cuda.is_available() else batch


def make_loader(
    plan: Plan,
    rows: TrainingRows | EvaluationRows,
    workers: int,
    mask_damage: bool = False,
    codec_patch: int = 0,
    noise: Mapping[str, float] | None = None,
) -> Loader:
    """A loader of the rows; the batches are the same for any number of workers.

    Args:
        plan: the rows.
        rows: the sampler that names the rows of each batch.
        workers: processes that read; 0 reads in this process.
        mask_damage, codec_patch, noise: as in `RowDataset`.
    """
    batch_rows = rows.micro_batch if isinstance(rows, TrainingRows) else rows.batch
    id_bytes = BYTES_PER_ID + (FEATURE_BYTES_PER_ID if codec_patch else 0)
    id_bytes += TARGET_BYTES if noise else 0
    patch_bytes = FRAME_BYTES_PER_PATCH + BYTES_PER_PATCH
    length, patch = plan.config.row_length, plan.config.patch
    batch_bytes = batch_rows * (length * id_bytes + length // patch * patch_bytes)
    ahead = max(1, PREFETCH_BYTES // (batch_bytes * max(1, workers)))
    dataset = RowDataset(plan, mask_damage, codec_patch, noise)
    return Loader(dataset, rows, workers, min(ahead, MAX_PREFETCHED_BATCHES))
