"""What a training costs beside its steps: its start, its data, its checkpoints and failures."""

from __future__ import annotations

from bytelm.model.flops import costs as model_costs
from bytelm.model.flops import training_flops_per_byte
from bytelm.model.presets import preset
from bytelm.pipelines.shards.manifest import PART_SHARDS
from bytelm.pipelines.shards.reader import MAX_OPEN_FILES
from bytelm.pipelines.storage.cache import CACHE_GB
from bytelm.pipelines.storage.prefetch import PREFETCH_THREADS
from bytelm.pipelines.training.preflight import CHECKED_SHARDS
from bytelm.tools.simulation.cluster import Cluster, Workload
from bytelm.tools.simulation.costs import TrainingCosts
from bytelm.tools.simulation.estimate import Estimate
from bytelm.tools.simulation.failures import CheckpointTimes, expected_loss
from bytelm.tools.simulation.prepare_model import UPLOAD_REQUESTS, upload_speed

RANK_TIMEOUT = 600.0
"""`train.rank_timeout`: longest wait of a rank for another one."""
LONG_START = 600.0
JOIN_RANK_SECONDS = 0.01
"""Rendezvous and first collective: of each further rank, through one store of keys."""
CHECKPOINT_INTERVAL = 1800.0
LARGE_LOSS = 0.1
"""Share of the time from which checkpoints and failures are said to break a training."""
FLOAT = 4


class TrainingModel:
    """The costs of training one preset on a set."""

    def __init__(self, costs: TrainingCosts, cluster: Cluster, workload: Workload, model: str):
        """`model` is the name of a preset."""
        config = preset(model)
        self.costs = costs
        self.cluster = cluster
        self.workload = workload
        self.rank_speed = cluster.rank_flops / training_flops_per_byte(config)
        """Bytes per second that a rank trains on."""
        self.parameters = sum(cost.parameters for cost in model_costs(config))

    @property
    def speed(self) -> float:
        """Bytes per second of all ranks."""
        return self.rank_speed * self.cluster.ranks

    def estimates(self) -> list[Estimate]:
        """All estimates of a training."""
        return [*self._start(), *self._loading(), *self._store(), *self._checkpoints()]

    # --- start ---

    @property
    def window_documents(self) -> float:
        """Documents of the shards that are shuffled together."""
        in_shard = self.workload.shard_bytes / self.workload.document_bytes
        return min(self.workload.shuffle_window * in_shard, self.workload.documents)

    @property
    def open_seconds(self) -> float:
        """Opening the set, and the parts of the manifest that the first window needs."""
        parts = min(self.workload.shuffle_window, 1 + self.workload.shards / PART_SHARDS)
        each = self.costs.manifest_part_seconds + self.cluster.shared_latency
        return self.costs.open_seconds + parts * each

    @property
    def start_seconds(self) -> float:
        """From the start of the processes to row 0 on every rank, where the rows are counted."""
        join = self.costs.join_seconds + self.cluster.ranks * JOIN_RANK_SECONDS
        first_row = self.window_documents * self.costs.count_document_seconds
        return join + self.open_seconds + first_row + self.costs.row_seconds

    def _start(self) -> list[Estimate]:
        counting = self.workload.documents * self.costs.count_document_seconds / self.cluster.cores
        checked = min(self.workload.shards, CHECKED_SHARDS)
        checking = checked * (self.cluster.shared_latency + self.costs.stat_seconds)
        fetching = self.workload.shard_bytes / self.cluster.store_connection
        fetching += self.cluster.store_latency
        waiting = ""
        if counting > RANK_TIMEOUT:
            waiting = f"ranks wait at most {RANK_TIMEOUT:.0f} s: count ahead (bytelm index --count)"
        return [
            Estimate("start/open", self.open_seconds, "s", "manifest"),
            Estimate("start/count-rows-once", counting, "s", "cores of a node", waiting),
            Estimate("start/check-sizes", checking, "s", "latency", _slow_start(checking)),
            Estimate(
                "start/first-row", self.start_seconds, "s", "join", _slow_start(self.start_seconds)
            ),
            Estimate("start/first-shard", fetching, "s", "one connection", _slow_start(fetching)),
        ]

    # --- data ---

    def _loading(self) -> list[Estimate]:
        """From a filesystem that all nodes see: each rank reads its own rows."""
        cluster = self.cluster
        workers = self.rank_speed / self.costs.batch_bytes_per_second
        cores = cluster.cores / cluster.ranks_per_node
        breaks = f"a rank has {cores:.0f} cores" if workers > cores else ""
        share = self.speed / cluster.shared_disk
        return [
            Estimate("load/rank", self.rank_speed, "bytes/s", "the step"),
            Estimate("load/workers", workers, "cores/rank", "batches", breaks),
            Estimate("load/shared-disk", share, "share", "bandwidth", _over(share)),
            Estimate(
                "load/open-files", cluster.ranks * max(1.0, workers) * MAX_OPEN_FILES, "files"
            ),
            Estimate("load/pass", self.workload.size / self.speed, "s", "the step"),
        ]

    def _store(self) -> list[Estimate]:
        """From an object store: rows of one window go to all ranks, so that every node fetches
        every shard."""
        cluster, load = self.cluster, self.workload
        processes = cluster.ranks_per_node  # one data worker a rank
        connections = min(processes * PREFETCH_THREADS * cluster.store_connection, cluster.network)
        cached = 2 * load.shuffle_window * load.shard_bytes
        full = cached > CACHE_GB * 1e9
        shares = {
            "store/connections": self.speed / connections,
            "store/disk": self.speed / cluster.disk,
            "store/egress": self.speed * cluster.nodes / cluster.store_egress,
            "store/requests": 2
            * self.speed
            / load.shard_bytes
            * cluster.nodes
            / cluster.store_reads,
        }
        return [
            *(
                Estimate(n, share, "share", "each node fetches all", _over(share))
                for n, share in shares.items()
            ),
            Estimate(
                "store/cache", cached, "bytes", "two windows", "raise data.cache_gb" if full else ""
            ),
        ]

    # --- checkpoints ---

    def _checkpoints(self) -> list[Estimate]:
        cluster = self.cluster
        weights = FLOAT * self.parameters
        optimizer = 3 * weights / cluster.ranks  # fp32 weights and two moments, cut up
        size = 5 * weights  # by rank 0 the weights for DeepSpeed, and the model
        copy = (2 * weights + optimizer) / min(
            cluster.device_copy, self.costs.copy_bytes_per_second
        )
        write_speed = self.costs.checkpoint_write_bytes_per_second
        write = max((2 * weights + optimizer) / write_speed, size / cluster.shared_disk)
        files = cluster.ranks + 3
        upload = size / upload_speed(cluster, optimizer)
        upload += files * UPLOAD_REQUESTS * cluster.store_latency
        read = max((weights + optimizer) / write_speed, size / cluster.shared_disk)
        restart = cluster.detect_seconds + self.start_seconds + read
        times = CheckpointTimes(CHECKPOINT_INTERVAL, copy, write, restart, cluster.mtbf)
        lost = expected_loss(times)
        behind = "uploads are passed over" if upload > CHECKPOINT_INTERVAL else ""
        large = f"take one every {times.best_interval:,.0f} s" if lost > LARGE_LOSS else ""
        return [
            Estimate("checkpoint/size", size, "bytes"),
            Estimate("checkpoint/copy", copy, "s", "the step waits"),
            Estimate("checkpoint/write", write, "s", "rank 0"),
            Estimate("checkpoint/upload", upload, "s", "one file at a time", behind),
            Estimate("failures/mtbf", cluster.mtbf, "s", "nodes"),
            Estimate("failures/restart", restart, "s", "detection, start, reading"),
            Estimate("failures/lost", lost, "share", f"every {CHECKPOINT_INTERVAL:.0f} s", large),
        ]


def _slow_start(seconds: float) -> str:
    return f"over {LONG_START:.0f} s" if seconds > LONG_START else ""


def _over(share: float) -> str:
    return f"{share:,.1f} of what there is: the steps wait" if share > 1 else ""
