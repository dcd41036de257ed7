"""Where shards end: the rule of `SetWriter`, which writes documents as they come, and of
`ShardPlanner`, which knows their sizes alone.

A shard of more than one document has at most `shard_bytes`. Documents of files are counted by their
samples, and rows of tables by their members with headers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bytelm.pipelines.shards.format import MAX_SHARDS


def begins_shard(document_size: int, shard_size: int, shard_bytes: int) -> bool:
    """Whether a document of files goes to a new shard.

    Args:
        document_size: bytes of its samples.
        shard_size: bytes of the members of the open shard; 0 for an empty one.
        shard_bytes: the limit.
    """
    return shard_size > 0 and shard_size + document_size > shard_bytes


def rows_that_fit(
    ends: npt.NDArray[np.int64], first: int, shard_size: int, shard_bytes: int
) -> int:
    """Last row + 1 of a piece that the open shard takes; `first` where the next row begins a shard.

    Args:
        ends: [rows] where the members of each row end in the piece.
        first: the piece's next row.
        shard_size: bytes of the members of the open shard; 0 for an empty one, which takes a row of
            any size.
        shard_bytes: the limit.
    """
    start = int(ends[first - 1]) if first else 0
    stop = int(np.searchsorted(ends, start + shard_bytes - shard_size, side="right"))
    return max(stop, first if shard_size else first + 1)


def check_shard_count(shards: int, source_bytes: int, shard_bytes: int) -> None:
    """Refuse sources before they are decoded that fill more shards than there are numbers for.

    Args:
        shards: the most shards that the documents need.
        source_bytes: bytes of the sources. What they become may be larger.
        shard_bytes: the limit of a shard.
    """
    if min(shards, source_bytes // shard_bytes) < MAX_SHARDS:
        return
    least = -(-source_bytes // MAX_SHARDS // 1_000_000) * 2
    raise ValueError(
        f"the sources have {source_bytes / 1e9:,.0f} GB, which is more than {MAX_SHARDS:,} shards "
        f"of {shard_bytes / 1e6:g} MB, the most that a split can have: choose a larger --shard-mb, "
        f"such as {least}"
    )
