"""What `prepare` costs: on one machine, in parts with `merge`, and on Ray.

Times that overlap are compared and the longest counts; those that follow each other are added.
"""

from __future__ import annotations

from bytelm.pipelines.prepare.file_status import THREADS as STATUS_THREADS
from bytelm.pipelines.prepare.prepare_state import BLOCK_SHARDS
from bytelm.pipelines.prepare.work_items import ITEM_BYTES, ITEM_DOCUMENTS
from bytelm.tools.simulation.cluster import MAX_SHARDS, Cluster, Workload
from bytelm.tools.simulation.costs import PrepareCosts
from bytelm.tools.simulation.estimate import Estimate, slowest

WEEK = 7 * 86400.0
MAX_FOLDER_NAMES = 1e7
"""Names in a folder of a shared filesystem, above which operations on it become slow."""
UPLOAD_CONNECTIONS = 8
"""Parts of one object that are uploaded at once: those of a shard of 256 MB."""
UPLOAD_REQUESTS = 3
"""Requests of an upload that follow each other, beside its parts: begin, end, and its check."""
SYNCS = 6
"""Durable writes for each shard: tar, index, their names, and the progress."""
RAY_TASK_SECONDS = 2e-3
"""Of the command for each task: arguments, submission and result."""


class PrepareModel:
    """The costs of making one set, on the nodes of a cluster."""

    def __init__(self, costs: PrepareCosts, cluster: Cluster, workload: Workload):
        self.costs = costs
        self.cluster = cluster
        self.workload = workload

    def estimates(self) -> list[Estimate]:
        """All estimates of `prepare`."""
        return [
            self._shard_names(),
            *self._listing(),
            self._one_machine(),
            self._upload(),
            *self._parts(),
            *self._merge(),
            *self._ray(),
        ]

    # --- amounts ---

    @property
    def core_seconds(self) -> float:
        """Seconds of one core for decoding."""
        load, costs = self.workload, self.costs
        per_byte = (
            load.jpeg_share * costs.jpeg_seconds_per_byte
            + load.png_share * costs.png_seconds_per_byte
            + load.flac_share * costs.flac_seconds_per_byte
            + load.text_share * costs.text_seconds_per_byte
        )
        return load.size * per_byte

    @property
    def source_bytes(self) -> float:
        """Bytes of the source files."""
        load, costs = self.workload, self.costs
        share = (
            load.jpeg_share * costs.jpeg_source_share
            + load.png_share * costs.png_source_share
            + load.flac_share * costs.flac_source_share
            + load.text_share
        )
        return load.size * share

    @property
    def items(self) -> float:
        """Work items, where each document is a file."""
        return max(self.source_bytes / ITEM_BYTES, self.workload.documents / ITEM_DOCUMENTS)

    @property
    def save_seconds(self) -> float:
        """All saves of the progress. Each writes half a block of shards on average, and a hash of
        each block before."""
        shards, costs = self.workload.shards, self.costs
        blocks = shards / BLOCK_SHARDS
        each = BLOCK_SHARDS / 2 * costs.save_shard_seconds + blocks / 2 * costs.save_block_seconds
        return shards * each

    @property
    def sync_seconds(self) -> float:
        """Waiting until shards are durable, one after the other."""
        return self.workload.shards * SYNCS * self.cluster.shared_sync

    @property
    def listing_seconds(self) -> float:
        """Listing files by one process, whose threads wait for the statuses of several at once."""
        each = self.costs.list_file_seconds + self.cluster.shared_latency / STATUS_THREADS
        return self.workload.documents * each

    @property
    def decode_seconds(self) -> float:
        """Decoding on all cores of all nodes."""
        return self.core_seconds / (self.cluster.cores * self.cluster.nodes)

    # --- estimates ---

    def _shard_names(self) -> Estimate:
        needed = self.workload.size / self.workload.default_shard_bytes
        breaks = ""
        if needed > MAX_SHARDS:
            breaks = (
                f"names have six digits: take --shard-mb {self.workload.shard_bytes / 1e6:.0f}, "
                "as all lines below do"
            )
        return Estimate("shards/default-size", needed, "shards", "--shard-mb", breaks)

    def _listing(self) -> list[Estimate]:
        memory = self.workload.documents * self.costs.list_file_memory
        breaks = ""
        if memory > self.cluster.memory:
            breaks = "a listed file stays in memory: take tars or Parquet files, or several sets"
        groups = self.source_bytes / self.workload.row_group_bytes
        group_seconds = groups * (self.costs.list_row_group_seconds + self.cluster.shared_latency)
        return [
            Estimate(
                "list/files", self.listing_seconds, "s", "one process", _long(self.listing_seconds)
            ),
            Estimate("list/files-memory", memory, "bytes", "memory", breaks),
            Estimate("list/parquet", group_seconds, "s", "footers", _long(group_seconds)),
        ]

    def _one_machine(self) -> Estimate:
        """Listing, then decoding beside writing; the writing process saves the progress too."""
        size, costs, cluster = self.workload.size, self.costs, self.cluster
        working, bound = slowest(
            {
                "decoding": self.core_seconds / cluster.cores,
                "writing": size / costs.write_bytes_per_second + self.save_seconds,
                "finishing shards": size / costs.sha256_bytes_per_second + self.sync_seconds,
                "network": size / cluster.network,
            }
        )
        seconds = self.listing_seconds + working
        return Estimate("prepare/one-machine", seconds, "s", bound, _long(seconds))

    def _upload(self) -> Estimate:
        """Shards of one machine's `--out s3://`, one after the other."""
        speed = upload_speed(self.cluster, self.workload.shard_bytes)
        requests = self.workload.shards * UPLOAD_REQUESTS * self.cluster.store_latency
        seconds = self.workload.size / speed + requests
        return Estimate("prepare/upload", seconds, "s", "connections", _long(seconds))

    def _parts(self) -> list[Estimate]:
        """`--part I/N`: one part lists and stores the input, and each reads its own share."""
        size, costs, cluster = self.workload.size, self.costs, self.cluster
        listing = self.listing_seconds + self.workload.documents * costs.stage_file_seconds
        working, bound = slowest(
            {
                "decoding": self.decode_seconds,
                "writing": size / cluster.parts / costs.write_bytes_per_second,
                "shared filesystem": size / cluster.shared_disk,
            }
        )
        total = listing + working
        return [
            Estimate("parts/list", listing, "s", "one part lists", _long(listing)),
            Estimate("parts/decode", working, "s", bound, _long(working)),
            Estimate("parts/total", total, "s", "listing", _long(total)),
        ]

    def _merge(self) -> list[Estimate]:
        """`bytelm merge`, by one process, and first by as many as there are parts."""
        size, costs, cluster = self.workload.size, self.costs, self.cluster
        reading = self.workload.documents * costs.stage_file_seconds
        reading += self.items * (costs.item_seconds + cluster.shared_latency)
        alone = reading + size / costs.merge_bytes_per_second + self.sync_seconds
        writing, bound = slowest(
            {
                "processes": (size / costs.merge_bytes_per_second + self.sync_seconds)
                / cluster.parts,
                "shared filesystem": 2 * size / cluster.shared_disk,
            }
        )
        checking = self.workload.shards * 3 * cluster.shared_latency
        shared = 2 * reading + writing + checking
        names = 2 * self.items
        breaks = "" if names <= MAX_FOLDER_NAMES else "piece files in one folder: take several sets"
        return [
            Estimate("merge/read", reading, "s", "items", _long(reading)),
            Estimate("merge/one-process", alone, "s", "one process", _long(alone)),
            Estimate("merge/shares", shared, "s", bound, _long(shared)),
            Estimate("merge/names", names, "names", "a folder", breaks),
        ]

    def _ray(self) -> list[Estimate]:
        """`--on ray://...`: all cores decode, then all write; the command lists, and saves."""
        size, costs, cluster = self.workload.size, self.costs, self.cluster
        cores = cluster.cores * cluster.nodes
        submitting = (self.items + self.workload.shards) * RAY_TASK_SECONDS
        working, bound = slowest(
            {
                "decoding": self.decode_seconds + size / costs.merge_bytes_per_second / cores,
                "shared filesystem": 3 * size / cluster.shared_disk,  # pieces twice, shards once
                "the command": submitting + self.save_seconds,
            }
        )
        seconds = self.listing_seconds + working
        if self.listing_seconds > working:
            bound = "listing by the command"
        return [Estimate("prepare/ray", seconds, "s", bound, _long(seconds))]


def upload_speed(cluster: Cluster, object_bytes: float) -> float:
    """Bytes per second of one upload at a time."""
    connections = min(UPLOAD_CONNECTIONS, max(1.0, object_bytes / 33.5e6))
    return min(cluster.network, connections * cluster.store_connection)


def _long(seconds: float) -> str:
    return f"takes {seconds / 86400:,.0f} days" if seconds > WEEK else ""
