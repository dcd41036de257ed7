"""DataLoaders over the rows of a plan, with a bound on the memory of prefetched batches."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from bytelm.model.codec_features.layout import FEATURES
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.plan import Plan
from bytelm.pipelines.data.row_dataset import RowDataset
from bytelm.pipelines.data.samplers import EvaluationRows, TrainingRows
from bytelm.pipelines.runtime import signals

PREFETCH_BYTES = 1 << 26
"""Limit on the bytes of the batches that all workers of a loader together hold ready; each worker
holds at least one batch."""
MAX_PREFETCHED_BATCHES = 16
BYTES_PER_ID = 4
"""Upper bound: an id of 2 bytes, its role, and 5 bytes for each patch."""
FEATURE_BYTES_PER_ID = 2 * FEATURES


def make_loader(
    plan: Plan,
    rows: TrainingRows | EvaluationRows,
    workers: int,
    mask_damage: bool = False,
    codec_patch: int = 0,
) -> DataLoader[Batch]:
    """A DataLoader over the rows; the batches are the same for any number of workers.

    Args:
        plan: the rows.
        rows: the sampler that names the rows of each batch.
        workers: processes that read; 0 reads in this process.
        mask_damage, codec_patch: as in `RowDataset`.
    """
    batch_rows = rows.micro_batch if isinstance(rows, TrainingRows) else rows.batch
    id_bytes = BYTES_PER_ID + (FEATURE_BYTES_PER_ID if codec_patch else 0)
    batch_bytes = batch_rows * plan.config.row_length * id_bytes
    ahead = max(1, PREFETCH_BYTES // (batch_bytes * max(1, workers)))
    return DataLoader(
        RowDataset(plan, mask_damage, codec_patch),
        batch_sampler=rows,
        collate_fn=_identity,
        num_workers=workers,
        prefetch_factor=min(ahead, MAX_PREFETCHED_BATCHES) if workers else None,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )


def _ignore_signals(worker: int) -> None:
    signals.ignore_in_worker()


def _identity(batch: Any) -> Any:
    """Collate nothing: the dataset returns whole batches."""
    return batch
