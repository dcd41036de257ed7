"""An HTTP server that can be told to fail, and the shards of random bytes that it serves."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bytelm.pipelines.storage import cache, clients, prefetch, remote
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.cache import CacheConfig

SIZE = 200_000


def content(number: int, size: int = SIZE) -> bytes:
    """The bytes of a number's blob."""
    return random.Random(number).randbytes(size)


def blob(number: int, size: int = SIZE) -> Blob:
    """A number's blob."""
    data = content(number, size)
    return Blob(f"train-{number:06d}.tar", size, hashlib.sha256(data).hexdigest())


class Server(ThreadingHTTPServer):
    """A server to which clients may hang up."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


class Web:
    """An HTTP server whose next answers for a name can be scripted: a status, or `wrong`, `long`,
    `short` (less than announced), `clean short` (as announced), `stall` and `wait`, which send
    half and then nothing or, after `go_on`, the rest."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.script: dict[str, deque[str]] = defaultdict(deque)
        self.asked: list[str] = []
        self.go_on = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                web.asked.append(name)
                answers = web.script[name]
                answer = answers.popleft() if answers else "ok"
                if answer.isdigit():
                    self.send_error(int(answer))
                    return
                if name not in web.objects:
                    self.send_error(404)
                    return
                web.answer(self, answer, web.objects[name])

            def log_message(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/set"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, answer: str, data: bytes) -> None:
        """One answer with a body."""
        half = len(data) // 2
        sent = {"wrong": b"!" + data[1:], "long": data + b"!", "clean short": data[:half]}
        body = sent.get(answer, data)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if answer in {"short", "stall", "wait"}:
            handler.wfile.write(body[:half])
            handler.wfile.flush()
            handler.close_connection = True
            if answer == "stall":
                self.go_on.wait(30)
            if answer == "wait" and self.go_on.wait(30):
                handler.wfile.write(body[half:])
        else:
            handler.wfile.write(body)

    def put(self, *numbers: int, size: int = SIZE) -> list[Blob]:
        """Serve the blobs of these numbers."""
        blobs = [blob(number, size) for number in numbers]
        self.objects |= {b.name: content(n, size) for b, n in zip(blobs, numbers, strict=True)}
        return blobs


@contextmanager
def serving() -> Iterator[Web]:
    """A server for as long as the block runs."""
    web = Web()
    yield web
    web.go_on.set()
    web.server.shutdown()
    web.server.server_close()


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for everything as long as a test may."""
    monkeypatch.setattr(remote, "ATTEMPTS", 4)
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(prefetch, "ROOM_POLL_SECONDS", 0.05)
    monkeypatch.setattr(cache, "ROOM_SECONDS", 0.5)


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is true."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about")


def cached(config: CacheConfig) -> set[str]:
    """The objects in the cache; no part is left beside them."""
    names = {path.name for path in config.folder.iterdir()} - {cache.FOLDER_LOCK}
    assert not [name for name in names if name.endswith(cache.PART_SUFFIX)]
    return names
