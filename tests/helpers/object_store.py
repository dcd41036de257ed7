"""An S3 server of moto whose requests fail as a test asks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"


class ObjectStore:
    """The server: each write fails with probability `failure_share`, half before the store has
    seen it and half after, when the answer is lost; every tenth failure stalls for
    `stall_seconds`."""

    def __init__(self) -> None:
        self.failure_share = 0.0
        self.stall_seconds = 0.0
        self.failures = 0
        self.writes: list[str] = []
        """Paths of the objects written, in order."""
        self.on_write: Callable[[str], object] = lambda path: None
        """Called with the path of each write, before it."""
        self._rng = random.Random(0)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        is_write = environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE")
        if not is_write:
            return self._app(environ, start)
        self.on_write(environ["PATH_INFO"])
        if self._rng.random() >= self.failure_share:
            self.writes.append(environ["PATH_INFO"])
            return self._app(environ, start)
        self.failures += 1
        if self._rng.random() < 0.5:
            list(self._app(environ, lambda *_: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if self.failures % 10 == 0:
            time.sleep(self.stall_seconds)
        start("500 Internal Server Error", [("Content-Length", "0")])
        return []


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Run a server with an empty bucket, which the environment names to clients of S3."""
    store = ObjectStore()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # clients of earlier servers
    fsspec.filesystem("s3").mkdir(BUCKET)
    try:
        yield store
    finally:
        store.failure_share, store.on_write = 0.0, lambda path: None
        fsspec.filesystem("s3").rm(BUCKET, recursive=True)  # moto's content outlives its servers
        store.close()
