"""An HTTP server whose failures can be scripted, and the random blobs that it serves."""

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

from bytelm.pipelines.storage import cache, clients, prefetch, retries
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.cache import CacheConfig

SIZE = 200_000


def content(number: int, size: int = SIZE) -> bytes:
    """The bytes of blob `number`."""
    return random.Random(number).randbytes(size)


def blob(number: int, size: int = SIZE) -> Blob:
    """Name, size and hash of blob `number`."""
    data = content(number, size)
    return Blob(f"train-{number:06d}.tar", size, hashlib.sha256(data).hexdigest())


class Server(ThreadingHTTPServer):
    """A server that prints no error when a client hangs up."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


class Web:
    """An HTTP server with objects by name or whole path, and a script of its next answers for each.

    An answer is a status, or `wrong`, `long`, `short` (fewer bytes than announced), `clean short`
    (as announced), or `stall` and `wait`, which send half of the bytes; after `go_on` is set,
    `wait` sends the rest.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.script: dict[str, deque[str]] = defaultdict(deque)
        self.asked: list[str] = []
        self.go_on = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                is_whole = self.path in web.objects
                name = self.path if is_whole else self.path.rpartition("/")[2]
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
        """Send one answer with a body."""
        half = len(data) // 2
        bodies = {"wrong": b"!" + data[1:], "long": data + b"!", "clean short": data[:half]}
        body = bodies.get(answer, data)
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
        """Serve the blobs of these numbers, and return them."""
        blobs = [blob(number, size) for number in numbers]
        self.objects |= {b.name: content(n, size) for b, n in zip(blobs, numbers, strict=True)}
        return blobs


@contextmanager
def serving() -> Iterator[Web]:
    """Run a server while the block runs."""
    web = Web()
    yield web
    web.go_on.set()
    web.server.shutdown()
    web.server.server_close()


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every wait of storage to what a test can afford."""
    monkeypatch.setattr(retries, "ATTEMPTS", 4)
    monkeypatch.setattr(retries, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(prefetch, "ROOM_POLL_SECONDS", 0.05)
    monkeypatch.setattr(cache, "ROOM_SECONDS", 0.5)


def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; AssertionError after a minute."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition did not come to hold")


def cached(config: CacheConfig) -> set[str]:
    """The names of the blobs in the cache; AssertionError where a part is left."""
    names = {path.name for path in config.folder.iterdir()} - {cache.FOLDER_LOCK}
    assert not [name for name in names if name.endswith(cache.PART_SUFFIX)]
    return names
