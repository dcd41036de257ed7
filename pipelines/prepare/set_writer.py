"""Writing decoded documents to the shards of a set."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bytelm.pipelines.prepare.decode_pool import DecodedDocument
from bytelm.pipelines.prepare.documents import SkippedFile, SourceDocument
from bytelm.pipelines.prepare.set_folder import PrepareState
from bytelm.pipelines.shards.format import Shard
from bytelm.pipelines.shards.writer import ShardWriter


class SetWriter:
    """Writes documents to shards, in the set's order; a context manager that finishes the last one.

    A thread finishes a full shard while the next one grows. The state is saved with each finished
    shard.
    """

    def __init__(self, out: Path, shard_bytes: int, state: PrepareState):
        """
        Args:
            out: folder of the set.
            shard_bytes: size that no shard of more than one document exceeds.
            state: what is done already; updated with each finished shard.
        """
        self._out = out
        self._shard_bytes = shard_bytes
        self._state = state
        self._done = state.done
        self._shards_per_split = Counter(s.split for s in state.shards)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._open: ShardWriter | None = None
        self._closing: _ClosingShard | None = None
        self._skipped: list[SkippedFile] = []  # since the last full shard

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._thread.shutdown()

    def add(self, document: SourceDocument, decoded: DecodedDocument) -> None:
        """Write the next document, if it has samples."""
        if decoded.samples:
            writer = self._open
            if writer and not self._fits(writer, document, decoded):
                self._close_shard(writer)
            if self._open is None:
                self._open = ShardWriter(
                    self._out, document.split, self._shards_per_split[document.split]
                )
                self._shards_per_split[document.split] += 1
            self._open.add(document.key, decoded.sources, decoded.samples)
        self._skipped += decoded.skipped
        self._done += 1

    def _finish(self) -> None:
        """Finish the last shard."""
        if self._open:
            self._close_shard(self._open)
        self._settle()
        self._state.skipped += self._skipped

    def _fits(
        self, writer: ShardWriter, document: SourceDocument, decoded: DecodedDocument
    ) -> bool:
        is_full = writer.size + decoded.size > self._shard_bytes
        return not is_full and writer.split == document.split

    def _close_shard(self, writer: ShardWriter) -> None:
        """Let the thread finish the open shard, once it has finished the one before."""
        self._settle()
        self._closing = _ClosingShard(self._thread.submit(writer.close), self._done, self._skipped)
        self._open, self._skipped = None, []

    def _settle(self) -> None:
        """Wait until the shard that is being finished is final, and save that it is."""
        if self._closing is None:
            return
        self._state.shards.append(self._closing.shard.result())
        self._state.skipped += self._closing.skipped
        self._state.done = self._closing.done
        self._state.save(self._out)
        self._closing = None


@dataclass
class _ClosingShard:
    """A full shard that the thread is finishing."""

    shard: Future[Shard]
    done: int
    """Documents up to its end."""
    skipped: list[SkippedFile]
    """Files skipped among these documents since the preceding shard."""
