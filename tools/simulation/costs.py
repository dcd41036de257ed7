"""Costs of single operations in time of one core, and the file that keeps them.

`measure_prepare.py` and `measure_training.py` measure them; `costs.json` has those of one run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

COSTS_FILE = Path(__file__).with_name("costs.json")


@dataclass(frozen=True)
class PrepareCosts:
    """Costs of making a set. Decoding is counted by stored bytes, which are those of the set."""

    list_file_seconds: float
    """Listing a folder: one file, with its status, key and place in the order."""
    list_file_memory: float
    """Bytes that a listed file takes in the process."""
    list_row_group_seconds: float
    """Listing a Parquet file: one row group of its footer."""
    stage_file_seconds: float
    """Storing or reading the listed input of parts: one file."""
    text_seconds_per_byte: float
    jpeg_seconds_per_byte: float
    png_seconds_per_byte: float
    flac_seconds_per_byte: float
    jpeg_source_share: float
    """Bytes of the file for each stored byte."""
    png_source_share: float
    flac_source_share: float
    sha256_bytes_per_second: float
    write_bytes_per_second: float
    """A shard with its index, hash and checksums, as the writing process of `prepare` makes it."""
    merge_bytes_per_second: float
    """`merge`: pieces read, shards written."""
    save_shard_seconds: float
    """Saving the progress: one shard that stands in no block."""
    save_block_seconds: float
    """Saving the progress: one block of shards that is written already."""
    item_seconds: float
    """Reading what one work item left beside its members."""


@dataclass(frozen=True)
class TrainingCosts:
    """Costs of reading a set and of training on it."""

    open_seconds: float
    """Opening a set, without its parts."""
    manifest_part_seconds: float
    """Loading and checking one part of the manifest."""
    stat_seconds: float
    count_document_seconds: float
    """Packing: one document."""
    row_seconds: float
    """Finding a random row."""
    batch_bytes_per_second: float
    """Rows read, checked and framed, with codec features, in one data worker."""
    upload_bytes_per_second: float
    """Uploading to an S3 server in the same process: what client and server cost together."""
    request_seconds: float
    """A small object to the same server."""
    copy_bytes_per_second: float
    """A rank's state to memory."""
    checkpoint_write_bytes_per_second: float
    """Writing and hashing a checkpoint's files."""
    join_seconds: float
    """Two processes from their start, with imports, to the end of a first collective."""
    collective_seconds: float
    """A sum of three numbers over two processes."""


@dataclass(frozen=True)
class Costs:
    """All measured costs, and where and when they were measured."""

    machine: str
    date: str
    prepare: PrepareCosts
    training: TrainingCosts

    def save(self, path: Path) -> None:
        """Write the costs to a JSON file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Costs:
        """The costs in a JSON file; ValueError where it has none."""
        try:
            values = json.loads(path.read_bytes())
            parts = PrepareCosts(**values["prepare"]), TrainingCosts(**values["training"])
            return cls(values["machine"], values["date"], *parts)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no costs ({error}): make it with --measure") from error
