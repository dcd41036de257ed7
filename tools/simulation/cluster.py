"""What the simulation assumes of a cluster, an object store and the data.

Nothing here is measured. Where a figure is published, the line names the source; the others are
round numbers of common machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GIGABIT = 1e9 / 8
MAX_SHARDS = 1_000_000
"""Shards of a split: their numbers have six digits."""


@dataclass(frozen=True)
class Cluster:
    """Equal nodes, a filesystem that all of them see, and an object store."""

    ranks: int
    """Ranks of a training, one an accelerator. As many nodes as they fill also prepare."""
    ranks_per_node: int = 8
    cores: int = 64
    """Cores of a node."""
    parts_per_node: int = 8
    """Array jobs of `prepare --part` on a node, which share its cores."""
    memory: float = 512e9
    """Bytes of a node."""
    network: float = 100 * GIGABIT
    """Bytes per second between a node and the store."""
    disk: float = 2e9
    """Bytes per second of a node's own disk."""
    rank_flops: float = 3.5e14
    """FLOP/s that an accelerator reaches in training: 35 % of an H100's 989 TFLOP/s in bf16."""
    device_copy: float = 2e10
    """Bytes per second from an accelerator to the host's memory."""
    shared_disk: float = 4e10
    """Bytes per second of the shared filesystem, for all nodes together."""
    shared_latency: float = 2e-4
    """Seconds of an operation on the shared filesystem's metadata."""
    shared_sync: float = 5e-3
    """Seconds until a write to the shared filesystem is durable."""
    store_latency: float = 0.15
    """Seconds to an object's first byte: 100 to 200 ms (Amazon S3, "Best practices design
    patterns: optimizing Amazon S3 performance")."""
    store_connection: float = 87e6
    """Bytes per second of one connection: "one concurrent request for each 85-90 MB/s" (AWS,
    "Horizontal scaling and request parallelization for high throughput")."""
    store_reads: float = 5500
    """GET requests per second of a prefix: 5,500 (Amazon S3, as above); Google Cloud Storage
    begins with 5,000 of a bucket ("Request rate and access distribution guidelines")."""
    store_writes: float = 3500
    """PUT requests per second of a prefix: 3,500 (Amazon S3); 1,000 at first (Google)."""
    store_egress: float = 200 * GIGABIT
    """Bytes per second that a bucket delivers: 50 to 200 Gbit/s a storage account (Azure,
    "Scalability and performance targets"); S3 names no limit."""
    node_mtbf: float = 47 * 86400.0
    """Seconds between failures of a node of eight accelerators (Meta's two research clusters,
    arXiv:2410.21680: some 8 hours for 1,024 of them)."""
    detect_seconds: float = 60.0
    """Seconds until a dead node is noticed and replaced by a spare one."""

    @property
    def nodes(self) -> int:
        """Nodes that the ranks fill."""
        return math.ceil(self.ranks / self.ranks_per_node)

    @property
    def parts(self) -> int:
        """Array jobs on all nodes."""
        return self.nodes * self.parts_per_node

    @property
    def mtbf(self) -> float:
        """Seconds between failures of any node."""
        return self.node_mtbf / self.nodes


@dataclass(frozen=True)
class Workload:
    """A set, and what it is made of: images, sounds and texts, by shares of its stored bytes."""

    size: float
    """Stored bytes."""
    document_bytes: float = 1e5
    """Stored bytes of a document, so that a petabyte has 10^10."""
    jpeg_share: float = 0.5
    png_share: float = 0.1
    flac_share: float = 0.3
    text_share: float = 0.1
    row_group_bytes: float = 64e6
    """Source bytes of a row group, where the sources are Parquet files."""
    default_shard_bytes: float = 256e6
    shuffle_window: int = 16
    """Shards of a window, whose rows are shuffled together."""

    @property
    def documents(self) -> float:
        """Number of documents."""
        return self.size / self.document_bytes

    @property
    def shard_bytes(self) -> float:
        """The default size of a shard, doubled until half of the numbers of six digits suffice."""
        size = self.default_shard_bytes
        while self.size / size > MAX_SHARDS / 2:
            size *= 2
        return size

    @property
    def shards(self) -> float:
        """Number of shards."""
        return self.size / self.shard_bytes
