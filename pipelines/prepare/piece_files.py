"""Piece files: what the decoding of one work item gave, on disk.

    item-NNNNNN.members   members of the documents, as they will stand in the tars
    item-NNNNNN.npz       where they are, their index rows and checksums, and what was skipped

The second is written last, so an item that has it is done.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.documents import SkippedFile, SourceDocument
from bytelm.pipelines.prepare.table_decode import BadRows, Instalment
from bytelm.pipelines.prepare.table_pool import TablePosition
from bytelm.pipelines.prepare.tables import TableUnit
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.prepare.work_items import WorkItem
from bytelm.pipelines.shards.format import SPLITS
from bytelm.pipelines.shards.pieces import PieceBuilder, ShardPiece
from bytelm.pipelines.storage.files import replace_atomic

PIECE_BYTES = 1 << 24
"""Decoded bytes of documents of files, above which a piece takes no further one."""
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


def decode_item(
    item: WorkItem,
    documents: Sequence[SourceDocument],
    units: Sequence[TableUnit],
    shares: tuple[float, float, float],
    pool: DecodePool,
    folder: Path,
) -> int:
    """Decode a work item and write its piece file.

    Args:
        item: which documents or units.
        documents: those of the item.
        units: those of the item.
        shares: of train, val and test.
        pool: decodes; one pool serves any number of items.
        folder: of the piece files.
    Returns:
        the bytes of the members.
    Raises:
        RuntimeError: where decoding processes do not start.
        OSError: where the disk does not take the file.
    """
    writer = _PieceFileWriter()

    def write_members(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            writer.file = file
            if item.is_table:
                writer.add_tables(item.first, units, shares, pool)
            else:
                writer.add_documents(documents, pool)

    replace_atomic(members_path(folder, item.number), write_members)
    replace_atomic(summary_path(folder, item.number), writer.write_summary)
    return writer.size


class _PieceFileWriter:
    """Writes the members of an item as they are decoded, and keeps the rest for the end."""

    file: BinaryIO

    def __init__(self) -> None:
        self.size = 0
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._pieces: list[dict[str, Any]] = []
        self._skipped: list[SkippedFile] = []
        self._tally = Tally()
        self._instalments: list[dict[str, Any]] = []

    def add_documents(self, documents: Sequence[SourceDocument], pool: DecodePool) -> None:
        """Decode documents of files of one split."""
        builder, sizes, size = PieceBuilder(), list[int](), 0
        for document, decoded in zip(documents, pool.decode_documents(documents), strict=True):
            if decoded.samples:
                builder.add(document.key, decoded.sources, decoded.samples)
                sizes.append(decoded.size)
                size += decoded.size
            self._tally.add(decoded.sources, decoded.samples, decoded.notes)
            self._skipped += decoded.skipped
            if size > PIECE_BYTES:
                self._add_built(document.split, builder, sizes)
                builder, sizes, size = PieceBuilder(), [], 0
        if sizes:
            self._add_built(documents[-1].split, builder, sizes)

    def add_tables(
        self,
        first: int,
        units: Sequence[TableUnit],
        shares: tuple[float, float, float],
        pool: DecodePool,
    ) -> None:
        """Decode units of tables, the first of which has number `first` among all."""
        start = TablePosition(dict.fromkeys(SPLITS, (0, 0)), (0, 0))
        for number, instalment in pool.decode_tables(units, start, shares):
            pieces = []
            for split in SPLITS:
                if split in instalment.splits:
                    piece = instalment.splits[split].piece
                    pieces.append(self._add_piece(split, [piece.members], piece, None))
            counts = replace(instalment, splits={}, kinds=Counter())
            self._instalments.append(
                {
                    "unit": first + number,
                    "counts": asdict(counts),
                    "kinds": list(instalment.kinds.items()),
                    "pieces": pieces,
                }
            )

    def write_summary(self, path: Path) -> None:
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
        """Write a piece's members and keep its arrays; returns its number."""
        number = len(self._pieces)
        self._pieces.append({"split": split, "start": self.size})
        self.file.writelines(members)
        self.size += sum(map(len, members))
        arrays = {"ends": piece.ends, "index": piece.index, "checksums": piece.checksums}
        if sizes is not None:
            arrays["sizes"] = sizes
        self._arrays |= {f"{number}-{name}": array for name, array in arrays.items()}
        return number


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


def read_pieces(
    folder: Path, item: int, parts: Sequence[tuple[int, int, int]]
) -> Iterator[ShardPiece]:
    """Parts of an item's pieces with their members, one after the other.

    Args:
        folder: of the piece files.
        item: number of the item.
        parts: number of the piece, first document and last document + 1 of each part.
    """
    with (
        np.load(summary_path(folder, item), allow_pickle=False) as arrays,
        open(members_path(folder, item), "rb") as file,
    ):
        starts = [p["start"] for p in json.loads(arrays["header"].tobytes())["pieces"]]
        for number, first, stop in parts:
            ends = arrays[f"{number}-ends"]
            file.seek(starts[number])
            piece = ShardPiece(
                members=memoryview(file.read(int(ends[-1]))),
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
