"""Where shards end: the rule of `SetWriter`, which writes documents as they come, and of
`ShardPlanner`, which knows their sizes alone.

A shard of more than one document has at most `shard_bytes`. Documents of files are counted by their
samples, and rows of tables by their members with headers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
