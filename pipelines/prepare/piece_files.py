"""Piece files: what the decoding of one work item gave, on disk.

    item-NNNNNN.members   members of the documents, as they will stand in the tars
    item-NNNNNN.npz       where they are, their index rows and checksums, and what was skipped

The second is written last, so an item that has it is done. Pieces have checksums, which
`read_pieces` compares: where a set is made in one go, its pieces are removed after seconds, and are
not synced to the disk, which would then write everything twice. A machine that goes down may damage
those.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from bytelm.pipelines.prepare.decode_pool import DecodedDocument, DecodePool
from bytelm.pipelines.prepare.documents import SkippedFile, SourceDocument
from bytelm.pipelines.prepare.table_decode import BadRows, Instalment
from bytelm.pipelines.prepare.table_pool import TablePosition
from bytelm.pipelines.prepare.tables import TableUnit
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.prepare.work_items import WorkItem
from bytelm.pipelines.shards.format import SPLITS
from bytelm.pipelines.shards.pieces import PieceBuilder, ShardPiece
from bytelm.pipelines.storage.files import rename_durably, replace_atomic

PIECE_BYTES = 1 << 24
"""Decoded bytes of documents of files, above which a piece takes no further one."""
BUFFER_BYTES = 1 << 20
SYNC_BYTES = 1 << 25
"""Bytes between two syncs to the disk, which leave little to wait for at an item's end."""
Sizes = npt.NDArray[np.int64]


@dataclass
class StoredPiece:
    """A piece of a shard in a piece file, without its members."""

    split: str
    ends: Sizes
    """[documents] where the members of each document end in the piece."""
    sizes: Sizes | None
    """[documents] bytes of each document's samples; None for rows of tables."""
    start: int
    """Where the piece begins in the file of members."""


@dataclass
class StoredInstalment:
    """Some rows of a table: the counts of an `Instalment`, and its pieces."""

    unit: int
    """Number of the unit among all."""
    counts: Instalment
    """Without its splits."""
    pieces: list[int]
    """Numbers of its pieces in the file, in the order of SPLITS."""


@dataclass
class PieceSummary:
    """Content of a piece file beside the members."""

    pieces: list[StoredPiece] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    """Files of the item's documents."""
    tally: Tally = field(default_factory=Tally)
    """Counts over the item's documents of files."""
    instalments: list[StoredInstalment] = field(default_factory=list)


def members_path(folder: Path, item: int) -> Path:
    """The file of an item's members."""
    return folder / f"item-{item:06d}.members"


def summary_path(folder: Path, item: int) -> Path:
    """The file whose presence says that an item is done."""
    return folder / f"item-{item:06d}.npz"


def decode_items(
    items: Sequence[WorkItem],
    documents: Sequence[SourceDocument],
    units: Sequence[TableUnit],
    shares: tuple[float, float, float],
    pool: DecodePool,
    folder: Path,
    is_durable: bool,
) -> Iterator[tuple[WorkItem, int]]:
    """Decode work items and write their piece files. A thread writes; while it completes an item,
    the next one is decoded.

    Args:
        items: which documents and units, those of documents first.
        documents: those of the items, one item after the other.
        units: likewise.
        shares: of train, val and test.
        pool: decodes; one pool serves any number of calls.
        folder: of the piece files.
        is_durable: whether a complete piece file has to survive the end of its machine.
    Returns:
        an item whose piece file is complete, and the bytes of its members.
    Raises:
        RuntimeError: where decoding processes do not start.
        OSError: where the disk does not take the files.
    """
    pending: deque[_PieceFileWriter] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:

        def begin(item: WorkItem) -> _PieceFileWriter:
            return _PieceFileWriter(item, folder, thread, is_durable)

        for writer in chain(
            _decode_documents([i for i in items if not i.is_table], documents, pool, begin),
            _decode_tables([i for i in items if i.is_table], units, shares, pool, begin),
        ):
            pending.append(writer)
            if len(pending) > 1:
                yield pending.popleft().result()
        for writer in pending:
            yield writer.result()


def _decode_documents(
    items: Sequence[WorkItem],
    documents: Sequence[SourceDocument],
    pool: DecodePool,
    begin: Callable[[WorkItem], _PieceFileWriter],
) -> Iterator[_PieceFileWriter]:
    """Writers that have all documents of their items, which are of one split each."""
    decoded = zip(documents, pool.decode_documents(documents), strict=True)
    for item in items:
        with begin(item) as writer:
            writer.add_documents(islice(decoded, item.stop - item.first))
        yield writer


def _decode_tables(
    items: Sequence[WorkItem],
    units: Sequence[TableUnit],
    shares: tuple[float, float, float],
    pool: DecodePool,
    begin: Callable[[WorkItem], _PieceFileWriter],
) -> Iterator[_PieceFileWriter]:
    """Writers that have all rows of their items."""
    start = TablePosition(dict.fromkeys(SPLITS, (0, 0)), (0, 0))
    instalments = pool.decode_tables(units, start, shares)
    first = 0
    for item in items:
        stop = first + item.stop - item.first
        with begin(item) as writer:
            for number, instalment in instalments:
                writer.add_instalment(item.first + number - first, instalment)
                if number == stop - 1 and instalment.is_end:
                    break
        first = stop
        yield writer


class _PieceFileWriter:
    """Collects what an item gave, and writes its members by a thread; a context manager whose end
    has the thread complete the piece file, or remove it after an error."""

    def __init__(self, item: WorkItem, folder: Path, thread: ThreadPoolExecutor, is_durable: bool):
        self._item = item
        self._folder = folder
        self._thread = thread
        self._is_durable = is_durable
        path = members_path(folder, item.number)
        self._temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._file = open(self._temporary, "wb", buffering=BUFFER_BYTES)  # noqa: SIM115
        self._written: Future[None] = thread.submit(lambda: None)
        self._unsynced = 0
        self._size = 0
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._pieces: list[dict[str, Any]] = []
        self._skipped: list[SkippedFile] = []
        self._tally = Tally()
        self._instalments: list[dict[str, Any]] = []

    def __enter__(self) -> _PieceFileWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._written = self._thread.submit(self._complete, self._written)
        else:
            self._written = self._thread.submit(self._remove)

    def result(self) -> tuple[WorkItem, int]:
        """The item and the bytes of its members, once its piece file is complete. OSError where the
        disk did not take it."""
        self._written.result()
        return self._item, self._size

    def add_documents(self, documents: Iterable[tuple[SourceDocument, DecodedDocument]]) -> None:
        """Add documents of files of one split."""
        builder, sizes, size, split = PieceBuilder(), list[int](), 0, ""
        for document, decoded in documents:
            if decoded.samples:
                builder.add(document.key, decoded.sources, decoded.samples)
                sizes.append(decoded.size)
                size += decoded.size
                split = document.split
            self._tally.add(decoded.sources, decoded.samples, decoded.notes)
            self._skipped += decoded.skipped
            if size > PIECE_BYTES:
                self._add_built(split, builder, sizes)
                builder, sizes, size = PieceBuilder(), [], 0
        if sizes:
            self._add_built(split, builder, sizes)

    def add_instalment(self, unit: int, instalment: Instalment) -> None:
        """Add the next rows of a unit of tables, by its number among all."""
        pieces = []
        for split in SPLITS:
            if split in instalment.splits:
                piece = instalment.splits[split].piece
                pieces.append(self._add_piece(split, [piece.members], piece, None))
        counts = replace(instalment, splits={}, kinds=Counter())
        self._instalments.append(
            {
                "unit": unit,
                "counts": asdict(counts),
                "kinds": list(instalment.kinds.items()),
                "pieces": pieces,
            }
        )

    def _add_built(self, split: str, builder: PieceBuilder, sizes: list[int]) -> None:
        members, piece = builder.finish()
        self._add_piece(split, members, piece, np.array(sizes, np.int64))

    def _add_piece(
        self,
        split: str,
        members: Sequence[bytes | memoryview],
        piece: ShardPiece,
        sizes: Sizes | None,
    ) -> int:
        """Write a piece's members, after those before it, and keep its arrays; returns its
        number."""
        number = len(self._pieces)
        values = {"split": split, "start": self._size}
        self._pieces.append(values)
        size = sum(map(len, members))
        self._size += size
        self._written.result()  # so that two pieces at most are in memory
        self._written = self._thread.submit(self._write, members, size, values)
        arrays = {"ends": piece.ends, "index": piece.index, "checksums": piece.checksums}
        if sizes is not None:
            arrays["sizes"] = sizes
        self._arrays |= {f"{number}-{name}": array for name, array in arrays.items()}
        return number

    def _write(
        self, members: Sequence[bytes | memoryview], size: int, values: dict[str, Any]
    ) -> None:
        """Append a piece's members to the file, and add their checksum to its values; runs in the
        thread, as what follows."""
        crc = 0
        for part in members:
            crc = isal_zlib.crc32(part, crc)
            self._file.write(part)
        values["crc"] = crc
        self._unsynced += size
        if self._is_durable and self._unsynced >= SYNC_BYTES:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._unsynced = 0

    def _complete(self, last_write: Future[None]) -> None:
        """Complete the members, and then the summary."""
        members = members_path(self._folder, self._item.number)
        summary = summary_path(self._folder, self._item.number)
        try:
            last_write.result()
            self._file.flush()
            if self._is_durable:
                os.fsync(self._file.fileno())
            self._file.close()
            if self._is_durable:
                rename_durably(self._temporary, members)
                replace_atomic(summary, self._write_summary)
            else:
                self._temporary.rename(members)
                self._write_summary(self._temporary)
                self._temporary.rename(summary)
        except BaseException:
            self._remove()
            raise

    def _write_summary(self, path: Path) -> None:
        """Write everything but the members."""
        header = {
            "pieces": self._pieces,
            "skipped": [asdict(entry) for entry in self._skipped],
            "tally": asdict(self._tally),
            "instalments": self._instalments,
        }
        data = np.frombuffer(json.dumps(header).encode(), np.uint8)
        with open(path, "wb") as file:  # by its path, NumPy would append a suffix
            np.savez(file, allow_pickle=False, header=data, **self._arrays)

    def _remove(self) -> None:
        """Remove the unfinished file of members."""
        with suppress(OSError):  # what could not be written
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def read_summary(folder: Path, item: int) -> PieceSummary:
    """The summary of an item that is done; OSError or ValueError where it cannot be read."""
    with np.load(summary_path(folder, item), allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        pieces = [
            StoredPiece(
                split=values["split"],
                ends=arrays[f"{number}-ends"],
                sizes=arrays.get(f"{number}-sizes"),
                start=values["start"],
            )
            for number, values in enumerate(header["pieces"])
        ]
    return PieceSummary(
        pieces=pieces,
        skipped=[SkippedFile(**values) for values in header["skipped"]],
        tally=Tally(**header["tally"]),
        instalments=[_read_instalment(values) for values in header["instalments"]],
    )


def is_whole(folder: Path, item: int) -> bool:
    """Return whether the piece file of an item has all that was written to it."""
    try:
        pieces = read_summary(folder, item).pieces
        parts = [(number, 0, len(piece.ends)) for number, piece in enumerate(pieces)]
        for _ in read_pieces(folder, item, parts):
            pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False
    return True


def read_pieces(
    folder: Path, item: int, parts: Sequence[tuple[int, int, int]]
) -> Iterator[ShardPiece]:
    """Parts of an item's pieces with their members, one after the other.

    Args:
        folder: of the piece files.
        item: number of the item.
        parts: number of the piece, first document and last document + 1 of each part.
    Raises:
        OSError: where the file is missing, or differs from what was written.
    """
    with (
        np.load(summary_path(folder, item), allow_pickle=False) as arrays,
        open(members_path(folder, item), "rb") as file,
    ):
        pieces = json.loads(arrays["header"].tobytes())["pieces"]
        for number, first, stop in parts:
            ends = arrays[f"{number}-ends"]
            file.seek(pieces[number]["start"])
            members = file.read(int(ends[-1]))
            if isal_zlib.crc32(members) != pieces[number]["crc"]:
                raise OSError(
                    f"{file.name} is damaged, perhaps since a machine went down: remove it and "
                    f"{summary_path(folder, item).name} there, and run the same commands again"
                )
            piece = ShardPiece(
                members=memoryview(members),
                ends=ends,
                index=arrays[f"{number}-index"],
                checksums=arrays[f"{number}-checksums"],
            )
            yield piece.part(first, stop)


def _read_instalment(values: dict[str, Any]) -> StoredInstalment:
    counts = values["counts"]
    bad = {
        reason: BadRows(b["count"], b["size"], [(row, detail) for row, detail in b["first"]])
        for reason, b in counts["bad"].items()
    }
    kinds = Counter({tuple(modalities): count for modalities, count in values["kinds"]})
    return StoredInstalment(
        unit=values["unit"],
        counts=Instalment(**{**counts, "bad": bad, "kinds": kinds}),
        pieces=values["pieces"],
    )
