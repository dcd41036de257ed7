"""Batches: the rows that the plan names, read from shards, framed, and stacked.

B rows of a micro batch    L ids in a row    P ids in a patch    W ranks
"""

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
"""Bytes of batches that all workers of a loader together hold ready; one batch each at least."""
MAX_PREFETCHED_BATCHES = 16
BYTES_PER_ID = 4  # at most: ids of 2 bytes, role, and 5 bytes a patch
FEATURE_BYTES_PER_ID = 2 * FEATURES


def make_loader(
    plan: Plan,
    rows: TrainingRows | EvaluationRows,
    workers: int,
    mask_damage: bool = False,
    codec_features: bool = False,
) -> DataLoader[Batch]:
    """A DataLoader over the rows; the batches are the same for any number of workers.

    What workers hold ready is bounded by PREFETCH_BYTES, however slowly it is taken.
    `mask_damage`, `codec_features`: as of `RowDataset`.
    """
    batch_rows = rows.micro_batch if isinstance(rows, TrainingRows) else rows.batch
    id_bytes = BYTES_PER_ID + (FEATURE_BYTES_PER_ID if codec_features else 0)
    batch_bytes = batch_rows * plan.config.row_length * id_bytes
    ahead = max(1, PREFETCH_BYTES // (batch_bytes * max(1, workers)))
    return DataLoader(
        RowDataset(plan, mask_damage, codec_features),
        batch_sampler=rows,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=min(ahead, MAX_PREFETCHED_BATCHES) if workers else None,
        worker_init_fn=_leave_signals,
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals(worker: int) -> None:
    signals.leave_to_parent()


def _as_it_is(batch: Any) -> Any:
    return batch
