"""The saves of a run: when one begins, goes on and ends, and what the log says of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bytelm.pipelines.checkpoints.run_folder import UsableCheckpoint
from bytelm.pipelines.checkpoints.train_state import TrainState
from bytelm.pipelines.checkpoints.uploads import CheckpointUploads
from bytelm.pipelines.training.checkpointer import Checkpointer
from bytelm.pipelines.training.engine import Engine
from bytelm.pipelines.training.metrics_logger import MetricsLogger

LAST_UPLOAD_SECONDS = 600.0
"""Longest time for which the end of a run waits for its last upload."""
PROCESSOR_SHARE = 0.015
"""Share of one core for writing, and for uploading, where steps compute on the CPU: a step is as
much longer. On a GPU steps leave most cores idle, and checkpoints are large."""
_POLL_SECONDS = 0.1


class RunSaves:
    """The checkpoints that a run writes. Every rank has one and calls it alike.

    All methods raise CheckpointError, on every rank, if a checkpoint cannot be written.
    """

    def __init__(self, engine: Engine, run: Path, extra: dict[str, Any]):
        """
        Args:
            extra: further keys of the exported model's config.
        """
        share = PROCESSOR_SHARE if engine.device.type == "cpu" else math.inf
        self.checkpointer = Checkpointer(engine, run, extra, share)
        self.newest_step: int | None = None
        """Step of the newest checkpoint that is written or begun."""
        self.log: MetricsLogger | None = None
        """Only rank 0 has one."""
        train = engine.config.train
        self._is_async = train.async_checkpoints
        self._uploads: CheckpointUploads | None = None
        if train.checkpoint_url and engine.rank == 0:
            self._uploads = CheckpointUploads(
                train.checkpoint_url, run, train.keep_last, train.keep_every, share
            )
            self.checkpointer.is_held = self._uploads.is_held

    @property
    def is_busy(self) -> bool:
        """Whether this rank is writing."""
        return self.checkpointer.is_busy

    @property
    def is_idle(self) -> bool:
        """Whether this rank neither saves nor uploads."""
        return not self.checkpointer.is_saving and self._is_uploaded

    @property
    def _is_uploaded(self) -> bool:
        return self._uploads is None or self._uploads.is_idle

    def resumed(self, checkpoint: UsableCheckpoint) -> None:
        """Note what the run goes on from; it is uploaded if the store does not have it."""
        self.newest_step = checkpoint.state.step
        if self._uploads:
            self._uploads.offer(checkpoint.folder)

    def begin(self, state: TrainState) -> None:
        """Begin to save the state, after the save before it, unless its step is saved."""
        if self.newest_step == state.step:
            return
        self.finish()
        self.checkpointer.begin(state)
        self.newest_step = state.step
        if not self._is_async:
            self.finish()
        if self.log:
            self.log.restart_interval()

    def advance(self, busy_ranks: int) -> None:
        """Go on with the save that is under way, if any, once no rank is writing."""
        if self.checkpointer.is_saving and not busy_ranks:
            self._completed(self.checkpointer.advance())
        self._log_uploads()

    def finish(self) -> None:
        """Wait until the save that is under way, if any, is whole."""
        self._completed(self.checkpointer.finish())

    def finish_uploads(self, is_over: Callable[[], bool]) -> None:
        """Wait on rank 0 for the last upload, at most LAST_UPLOAD_SECONDS or until `is_over`."""
        if self._uploads:
            self._uploads.hurry()
        end = time.monotonic() + LAST_UPLOAD_SECONDS
        while not self._is_uploaded:
            if is_over() or time.monotonic() > end:
                if self.log:
                    self.log.print("the last upload is broken off; --resume here goes on with it")
                break
            time.sleep(_POLL_SECONDS)
        self._log_uploads()

    def close(self) -> None:
        """End the threads. A save or an upload that is not whole by then is none."""
        self.checkpointer.close()
        if self._uploads:
            self._uploads.close()

    def _completed(self, folder: Path | None) -> None:
        if folder and self.log:
            self.log.checkpoint(folder)
        if folder and self._uploads:
            self._uploads.offer(folder)

    def _log_uploads(self) -> None:
        if self._uploads and self.log:
            for upload in self._uploads.ended():
                self.log.upload(upload)
