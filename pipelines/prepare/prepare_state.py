"""Progress of `prepare`, which is saved with each finished shard, and stays small to save.

    .prepare.json           the input, counts, and the shards that stand in no block
    .prepare-NNNNNN.json    a block: BLOCK_SHARDS finished shards, written once

The first file has the hashes of the blocks. Without it there is no progress.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.table_progress import TableProgress
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.shards.format import Shard

PREPARE_STATE = ".prepare.json"
BLOCK_SHARDS = 512
"""Shards of a block. A save writes half as many on average, and a hash for each block."""
STATE_NAME = re.compile(r"\.prepare(-\d{6})?\.json")
"""Names of the files."""


@dataclass
class PrepareState:
    """Progress of `prepare`. The field names stand in the files."""

    fingerprint: str
    """Identifies the input."""
    done: int = 0
    """Documents that lie in `shards`, or gave nothing."""
    shards: list[Shard] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    """Counts over the documents in `shards`."""
    tables: TableProgress = field(default_factory=TableProgress)

    def __post_init__(self) -> None:
        self._blocks: list[str] = []  # SHA-256 of those that this process has written
        self._skipped_in_blocks = 0

    @property
    def file_names(self) -> set[str]:
        """Names of the files of the last save."""
        return {PREPARE_STATE, *map(_block_name, range(len(self._blocks)))}

    def save(self, write: Callable[[str, bytes], object]) -> None:
        """Write the blocks that are new, then the state's own file.

        Args:
            write: replaces the content of a file, by its name.
        """
        while len(self.shards) - self._shards_in_blocks >= BLOCK_SHARDS:
            first = self._shards_in_blocks
            data = _to_json(
                shards=[asdict(s) for s in self.shards[first : first + BLOCK_SHARDS]],
                skipped=[asdict(s) for s in self.skipped[self._skipped_in_blocks :]],
            )
            write(_block_name(len(self._blocks)), data)
            self._blocks.append(hashlib.sha256(data).hexdigest())
            self._skipped_in_blocks = len(self.skipped)
        data = _to_json(
            fingerprint=self.fingerprint,
            done=self.done,
            blocks=self._blocks,
            shards=[asdict(s) for s in self.shards[self._shards_in_blocks :]],
            skipped=[asdict(s) for s in self.skipped[self._skipped_in_blocks :]],
            tally=asdict(self.tally),
            tables=asdict(self.tables),
        )
        write(PREPARE_STATE, data)

    @classmethod
    def load(cls, read: Callable[[str], bytes], fingerprint: str) -> PrepareState:
        """The state of the same input, or that of a fresh start where there is none or it is
        damaged. Its first save writes all files again.

        Args:
            read: the content of a file, by its name; FileNotFoundError where there is none.
            fingerprint: identifies the input.
        """
        try:
            values = json.loads(read(PREPARE_STATE))
            if values["fingerprint"] != fingerprint:
                return cls(fingerprint)
            parts = [*_read_blocks(read, values["blocks"]), values]
            return cls(
                fingerprint=fingerprint,
                done=values["done"],
                shards=[Shard(**s) for part in parts for s in part["shards"]],
                skipped=[SkippedFile(**s) for part in parts for s in part["skipped"]],
                tally=Tally(**values["tally"]),
                tables=TableProgress.from_json(values["tables"]),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls(fingerprint)

    @property
    def _shards_in_blocks(self) -> int:
        return BLOCK_SHARDS * len(self._blocks)


def _block_name(number: int) -> str:
    return f".prepare-{number:06d}.json"


def _read_blocks(read: Callable[[str], bytes], hashes: list[str]) -> Iterator[dict[str, Any]]:
    """The blocks; ValueError where one does not have its hash."""
    for number, sha256 in enumerate(hashes):
        data = read(_block_name(number))
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"{_block_name(number)} is not the block that was written")
        yield json.loads(data)


def _to_json(**values: Any) -> bytes:
    return json.dumps(values).encode("utf-8", "surrogatepass")
