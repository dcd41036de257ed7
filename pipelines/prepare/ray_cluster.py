"""Connection to a Ray cluster: its nodes, and tasks that run on them.

This is the one module that imports Ray, and only where a cluster is used. Ray retries no task by
itself: `ray_tasks.py` does, so that retries are counted, bounded and reported.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import signal
import socket
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from bytelm.pipelines.runtime.signals import Terminated

LOCAL = "ray"
"""Value of `--on` for a cluster on this machine, which the command starts and ends."""
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 80 << 20
"""Object store of a local cluster, near Ray's minimum: results of tasks are small."""


class TaskDiedError(Exception):
    """A task ended without a result: its process was killed or crashed, or its node was lost."""

    def __init__(self, cause: str, is_node_lost: bool):
        super().__init__(cause)
        self.is_node_lost = is_node_lost


class RayCluster:
    """A cluster that this process is connected to; `ray_cluster` makes one."""

    def __init__(self, ray: Any):
        self._ray = ray
        self._task = ray.remote(num_cpus=1, max_retries=0)(_portable_task())

    def nodes(self) -> dict[str, int]:
        """CPUs by the id of each node that is alive and has some."""
        return {
            node["NodeID"]: int(node["Resources"].get("CPU", 0))
            for node in self._ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        }

    def submit(
        self, function: Callable[..., Any], arguments: Sequence[Any], node: str | None = None
    ) -> Any:
        """Send a task to the cluster.

        Args:
            function: a function of a module, found by its name on the node.
            arguments: small; they can be pickled.
            node: id of a node that is preferred; None leaves the choice to Ray.
        Returns:
            the task, for the methods below.
        """
        task = self._task
        if node is not None:
            strategies = importlib.import_module("ray.util.scheduling_strategies")
            strategy = strategies.NodeAffinitySchedulingStrategy(node, soft=True)
            task = task.options(scheduling_strategy=strategy)
        call = zlib.compress(pickle.dumps((function, tuple(arguments))), 1)
        return task.remote(version("bytelm"), call)

    def wait(self, tasks: Sequence[Any], seconds: float) -> list[Any]:
        """The tasks of a list that have ended; waits up to `seconds` for the first one."""
        ended, _ = self._ray.wait(list(tasks), num_returns=1, timeout=seconds)
        more, _ = self._ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
        return list(more or ended)

    def result(self, task: Any) -> Any:
        """The result of a task that has ended; raises what the task raised, or TaskDiedError."""
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(task)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayError as error:
            lost = (exceptions.NodeDiedError, exceptions.LocalRayletDiedError)
            if isinstance(error, lost):
                raise TaskDiedError("its node was lost", is_node_lost=True) from error
            if isinstance(error, exceptions.OutOfMemoryError):
                cause = "its node ran out of memory"
            else:
                cause = f"its process died ({type(error).__name__})"
            raise TaskDiedError(cause, is_node_lost=False) from error

    def cancel(self, tasks: Sequence[Any]) -> None:
        """End tasks at once, running or not."""
        for task in tasks:
            with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
                self._ray.cancel(task, force=True)


@contextmanager
def ray_cluster(address: str, cpus: int) -> Iterator[RayCluster]:
    """Connect to a cluster, or start one on this machine; its end is that of the context.

    Args:
        address: LOCAL, or an address that `ray.init` takes: `ray://HOST:PORT`, `HOST:PORT`, `auto`.
        cpus: tasks that a local cluster runs at a time.
    Raises:
        ValueError: where Ray is not installed, or there is no cluster at the address.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError("--on needs Ray: pip install 'bytelm[ray]'") from error
    _silence()
    with ExitStack() as stack:
        settings: dict[str, Any] = {"address": address}
        if address == LOCAL:
            settings = _local_settings(cpus)
            folder = stack.enter_context(_short_folder())
            settings["_temp_dir"] = folder
        else:
            _check_reachable(address)
        stack.callback(ray.shutdown)
        with _signals_kept():
            _connect(ray, settings)
        yield RayCluster(ray)


def _local_settings(cpus: int) -> dict[str, Any]:
    """Arguments of `ray.init` for a cluster of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return {
        "address": "local",
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }


@contextmanager
def _short_folder() -> Iterator[str]:
    """A folder for a cluster's logs and sockets. The paths of sockets are limited to 107
    characters, which one below a long TMPDIR exceeds."""
    folder = tempfile.TemporaryDirectory(
        prefix="bytelm-ray-", dir="/tmp", ignore_cleanup_errors=True
    )
    with folder as path:
        yield path


def _check_reachable(address: str) -> None:
    """Raise ValueError where no server answers at an address. Ray itself would try for minutes."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"--on {address}: {error}") from error
    if parts.hostname is None or port is None:
        if address == "auto":
            return
        raise ValueError(f"--on {address} is no address: give ray, ray://HOST:PORT or HOST:PORT")
    try:
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        cause = error.strerror or error
        raise ValueError(f"--on {address}: no Ray cluster answers there ({cause})") from error


def _connect(ray: Any, settings: dict[str, Any]) -> None:
    """Call `ray.init`; ValueError where there is no cluster that fits."""
    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **settings)
    except SystemExit as error:  # Ray's own handler of SIGTERM, while it starts
        raise Terminated from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        cause = str(error).partition("\n")[0]
        raise ValueError(f"Ray at {settings['address']} does not start: {cause}") from error


def _silence() -> None:
    """Keep the messages of Ray's daemons from stdout; what matters of them is raised by tasks."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    worker: Any = importlib.import_module("ray._private.worker")
    worker._worker_logs_enabled = False  # log_to_driver does not reach them


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which `ray.init` replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _portable_task() -> Callable[[str, bytes], Any]:
    """The function that runs on nodes. As a local one it is sent whole, so that it can tell where
    bytelm is missing."""

    def run_task(expected: str, call: bytes) -> Any:
        import importlib.metadata
        import pickle
        import socket
        import zlib

        try:
            found = importlib.metadata.version("bytelm")
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != expected:
            raise ValueError(
                f"bytelm is {found} on node {socket.gethostname()}, and {expected} here: "
                "install the same version on all nodes"
            )
        function, arguments = pickle.loads(zlib.decompress(call))
        return function(*arguments)

    return run_task
