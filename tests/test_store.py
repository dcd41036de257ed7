"""Stores: what a remote place delivers is the object that was meant, or an error that names it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from bytelm.pipelines import cache as cache_module
from bytelm.pipelines import store as store_module
from bytelm.pipelines.cache import Blob, Cache, CacheConfig, Counts
from bytelm.pipelines.store import DamageError, LocalStore, RemoteStore, Store, open_store

SIZE = 200_000


def content(number: int, size: int = SIZE) -> bytes:
    return random.Random(number).randbytes(size)


def blob(number: int, size: int = SIZE) -> Blob:
    data = content(number, size)
    return Blob(f"train-{number:06d}.tar", size, hashlib.sha256(data).hexdigest())


class Web:
    """An HTTP server whose next answers for a name can be scripted."""

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

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
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
        blobs = [blob(number, size) for number in numbers]
        self.objects |= {b.name: content(n, size) for b, n in zip(blobs, numbers, strict=True)}
        return blobs


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.go_on.set()
    web.server.shutdown()
    web.server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ATTEMPTS", 4)
    monkeypatch.setattr(store_module, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(store_module, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(store_module, "ROOM_POLL_SECONDS", 0.05)
    monkeypatch.setattr(cache_module, "ROOM_SECONDS", 0.5)


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(tmp_path / "cache", 3 * SIZE)


@pytest.fixture
def store(web: Web, config: CacheConfig) -> Iterator[Store]:
    store = open_store(web.url, config)
    yield store
    store.close()


def cached(config: CacheConfig) -> set[str]:
    """The objects in the cache; no part is left beside them."""
    names = {path.name for path in config.folder.iterdir()} - {cache_module.FOLDER_LOCK}
    assert not [name for name in names if name.endswith(cache_module.PART)]
    return names


def eventually(condition: object) -> None:
    """Wait until a callable is true."""
    assert callable(condition)
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about")


# Places


def test_a_folder_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "train-000001.tar").write_bytes(content(1))
    for location in (tmp_path, str(tmp_path), tmp_path.as_uri()):
        store = open_store(location, None)
        assert isinstance(store, LocalStore)
        store.prefetch([blob(1)])
        assert store.path(blob(1)) == tmp_path / "train-000001.tar"
        assert store.read("train-000001.tar", SIZE) == content(1)
        with pytest.raises(ValueError, match="more than"):
            store.read("train-000001.tar", SIZE - 1)
        store.release(blob(1))
        store.close()


@pytest.mark.parametrize(
    "location",
    [
        "pipe:cat /etc/passwd",
        "ftp://host/set",
        "file://host/set",
        "file:set",
        "simplecache::http://host/set",
        "http://host/set::file:///set",
        "ssh://host/set",
        "http:set",
        "http:///set",
        "http://user:word@host/set",
        "http://host/set?token=1",
        "https://host/set#part",
        "s3://key:secret@bucket/set",
    ],
)
def test_other_locations_are_refused(location: str, config: CacheConfig) -> None:
    with pytest.raises(ValueError, match="://") as caught:
        open_store(location, config)
    assert "word" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_refusal_lists_what_is_allowed(config: CacheConfig) -> None:
    with pytest.raises(ValueError, match="file://, s3://, gs://, http://, https://, hf://"):
        open_store("ftp://host/set", config)


def test_a_remote_place_needs_a_cache_and_a_client(
    config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="cache folder"):
        open_store("https://host/set", None)
    with pytest.raises(ValueError, match="positive"):
        CacheConfig(config.folder, 0)
    for location, package in (("s3://bucket/set", "s3fs"), ("gs://bucket/set", "gcsfs")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(
            sys.modules["fsspec.registry"]._registry, location.partition(":")[0], raising=False
        )
        with pytest.raises(ValueError, match=f"pip install {package}"):
            open_store(location, config)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a.tar", "a/b.tar", "/etc/passwd", "a%2fb", "a?b", "a\\b", "é", "a\n"],
)
def test_names_stay_in_their_place(name: str, tmp_path: Path, store: Store) -> None:
    with pytest.raises(ValueError, match="no name of a shard"):
        Blob(name, 1, "0" * 64)
    for place in (store, open_store(tmp_path, None)):
        with pytest.raises(ValueError, match="no name of a shard"):
            place.read(name, 10)


def test_a_hash_is_a_hash() -> None:
    for sha256 in ("", "0" * 63, "../" + "0" * 61, "F" * 64):
        with pytest.raises(ValueError, match="SHA-256"):
            Blob("a.tar", 1, sha256)


def test_memory(config: CacheConfig) -> None:
    fsspec.filesystem("memory").pipe("/set/train-000001.tar", content(1))
    store = open_store("memory://set/", config)
    assert store.location == "memory://set"
    assert store.path(blob(1)).read_bytes() == content(1)
    assert store.read("train-000001.tar", SIZE) == content(1)
    with pytest.raises(FileNotFoundError, match=r"memory://set/train-000002\.tar"):
        store.path(blob(2))
    store.close()


def test_s3(config: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setattr(store_module, "TIMEOUT_SECONDS", 20.0)
        monkeypatch.setattr(store_module, "CHUNK_BYTES", SIZE // 3)
        s3 = fsspec.filesystem("s3")
        s3.mkdir("bucket")
        s3.pipe({f"bucket/a/set/train-{n:06d}.tar": content(n) for n in (1, 2)})
        s3.pipe("bucket/a/set/train-000003.tar", content(4))
        store = open_store("s3://bucket/a/set", config)
        store.prefetch([blob(2)])
        assert store.path(blob(1)).read_bytes() == content(1)
        assert store.path(blob(2)).read_bytes() == content(2)
        assert store.read("train-000002.tar", SIZE) == content(2)
        with pytest.raises(DamageError, match=r"s3://bucket/a/set/train-000003\.tar"):
            store.path(blob(3))
        with pytest.raises(FileNotFoundError, match=r"s3://bucket/a/set/manifest\.json"):
            store.read("manifest.json", 10)
        store.close()
    finally:
        server.stop()


# The network's ways


def test_http_is_fetched_once_and_kept(store: Store, web: Web, config: CacheConfig) -> None:
    one, two = web.put(1, 2)
    assert store.path(one).read_bytes() == content(1)
    assert store.path(one) == store.path(one)
    assert store.path(two).read_bytes() == content(2)
    assert web.asked == [one.name, two.name]
    assert cached(config) == {one.sha256, two.sha256}
    assert store.counts == Counts(fetched=2, fetched_bytes=2 * SIZE)
    again = open_store(web.url, config)
    assert again.path(one).read_bytes() == content(1)
    assert again.counts == Counts()
    again.close()
    assert len(web.asked) == 2


def test_equal_objects_of_two_sets_are_stored_once(
    store: Store, web: Web, config: CacheConfig
) -> None:
    (one,) = web.put(1)
    fsspec.filesystem("memory").pipe("/other/val-000007.tar", content(1))
    other = open_store("memory://other", config)
    same = Blob("val-000007.tar", SIZE, one.sha256)
    assert store.path(one) == other.path(same)
    assert other.counts.fetched == 0
    other.close()


@pytest.mark.parametrize("answer", ["500", "503", "429", "short", "clean short", "stall"])
def test_what_passes_is_tried_again(answer: str, store: Store, web: Web) -> None:
    (one,) = web.put(1)
    web.script[one.name].extend([answer, answer])
    assert store.path(one).read_bytes() == content(1)
    assert store.counts.retries == 2
    assert len(web.asked) == 3


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        ("500", OSError, "500"),
        ("short", OSError, "4 attempts"),
        ("clean short", DamageError, "only 100,000 of 200,000"),
        ("stall", OSError, "4 attempts"),
    ],
)
def test_what_does_not_pass_is_one_error(
    answer: str, kind: type[Exception], reason: str, store: Store, web: Web, config: CacheConfig
) -> None:
    (one,) = web.put(1)
    web.script[one.name].extend([answer] * 4)
    with pytest.raises(kind, match=f"{re.escape(web.url)}/{one.name}: .*{reason}") as caught:
        store.path(one)
    assert "\n" not in str(caught.value)
    assert len(web.asked) == 4
    assert cached(config) == set()
    assert store.path(one).read_bytes() == content(1)


@pytest.mark.parametrize(
    ("answer", "kind"), [("404", FileNotFoundError), ("403", PermissionError), ("410", OSError)]
)
def test_what_is_final_fails_at_once(
    answer: str, kind: type[Exception], store: Store, web: Web
) -> None:
    (one,) = web.put(1)
    web.script[one.name].extend([answer, answer])
    with pytest.raises(kind, match=f"{re.escape(web.url)}/{one.name}"):
        store.path(one)
    with pytest.raises(kind, match=f"{re.escape(web.url)}/{one.name}"):
        store.read(one.name, SIZE)
    assert len(web.asked) == 2


def test_no_server_is_one_error(config: CacheConfig) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    store = open_store(f"http://127.0.0.1:{server.server_port}", config)
    with pytest.raises(OSError, match="4 attempts"):
        store.path(blob(1))
    store.close()


@pytest.mark.parametrize("answer", ["wrong", "long"])
def test_wrong_bytes_are_tried_once_more_and_never_delivered(
    answer: str, store: Store, web: Web, config: CacheConfig
) -> None:
    one, two = web.put(1, 2)
    web.script[one.name].append(answer)
    assert store.path(one).read_bytes() == content(1)
    web.script[two.name].extend([answer, answer])
    with pytest.raises(DamageError, match=f"{re.escape(web.url)}/{two.name}"):
        store.path(two)
    assert len(web.asked) == 4
    assert cached(config) == {one.sha256}


def test_a_small_object_is_read_capped(store: Store, web: Web, config: CacheConfig) -> None:
    web.objects["manifest.json"] = content(1)
    web.script["manifest.json"].extend(["500", "short"])
    assert store.read("manifest.json", SIZE) == content(1)
    with pytest.raises(ValueError, match="more than 199,999 bytes"):
        store.read("manifest.json", SIZE - 1)
    assert cached(config) == set()


# The cache's ways


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_cached_file_is_fetched_again(
    damage: str, store: Store, web: Web, config: CacheConfig
) -> None:
    (one,) = web.put(1)
    path = store.path(one)
    store.release(one)
    data = {"flip": b"!" + content(1)[1:], "cut": content(1)[:-1], "empty": b""}[damage]
    path.write_bytes(data)
    later = open_store(web.url, config)  # a process hashes a file once; this is another's view
    assert later.path(one).read_bytes() == content(1)
    assert later.counts.damaged == 1
    assert len(web.asked) == 2
    later.close()


def test_an_emptied_folder_is_filled_again(store: Store, web: Web, config: CacheConfig) -> None:
    (one,) = web.put(1)
    store.path(one)
    for path in config.folder.iterdir():
        path.unlink()
    assert store.path(one).read_bytes() == content(1)


def test_the_least_recently_used_goes_first(store: Store, web: Web, config: CacheConfig) -> None:
    blobs = web.put(1, 2, 3, 4, 5)
    for number in (0, 1, 2, 0, 3, 0, 4):
        assert store.path(blobs[number]).read_bytes() == content(number + 1)
        store.release(blobs[number])
        time.sleep(0.01)
    assert cached(config) == {blobs[number].sha256 for number in (3, 0, 4)}
    assert store.counts.evicted == 2
    assert len(web.asked) == 5


def test_a_file_in_use_is_not_removed(store: Store, web: Web, config: CacheConfig) -> None:
    blobs = web.put(1, 2, 3, 4)
    other = open_store(web.url, config)
    path = other.path(blobs[0])
    for b in blobs[1:]:
        store.path(b)
        store.release(b)
    assert path.read_bytes() == content(1)
    assert blobs[1].sha256 not in cached(config)
    with open(path, "rb") as file:
        other.release(blobs[0])
        store.path(blobs[1])
        store.path(blobs[2])
        store.path(blobs[3])
        assert not path.exists()
        assert file.read() == content(1)
    other.close()


def test_a_limit_below_a_blob_or_the_working_set_is_an_error(
    store: Store, web: Web, config: CacheConfig
) -> None:
    blobs = web.put(1, 2, 3)
    (large,) = web.put(4, size=3 * SIZE + 17)
    with pytest.raises(ValueError, match=r"600,017 bytes, 17 more than the limit"):
        store.path(large)
    (half,) = web.put(5, size=SIZE // 2)
    for b in blobs:
        store.path(b)
    with pytest.raises(ValueError, match=r"need 100,000 bytes more than the limit"):
        store.path(half)
    store.release(blobs[0])
    assert store.path(half).read_bytes() == content(5, SIZE // 2)
    other = open_store(web.url, config)
    with pytest.raises(ValueError, match=r"all processes use at once need 100,000 bytes more"):
        other.path(blobs[0])
    store.release(blobs[1])
    assert other.path(blobs[0]).read_bytes() == content(1)
    other.close()


def test_files_of_others_are_left_alone(store: Store, web: Web, config: CacheConfig) -> None:
    (config.folder / "notes.txt").write_bytes(bytes(10 * SIZE))
    for b in web.put(1, 2, 3, 4):
        store.path(b)
        store.release(b)
    assert (config.folder / "notes.txt").stat().st_size == 10 * SIZE


# Ahead of use


def test_prefetch_goes_in_order_up_to_the_limit(
    store: Store, web: Web, config: CacheConfig
) -> None:
    blobs = web.put(1, 2, 3, 4, 5)
    store.prefetch(blobs)
    eventually(lambda: store.counts.fetched == 3)
    time.sleep(0.2)
    assert cached(config) == {b.sha256 for b in blobs[:3]}
    for number, b in enumerate(blobs, 1):
        assert store.path(b).read_bytes() == content(number)
        store.release(b)
    assert sorted(web.asked) == [b.name for b in blobs]


def test_use_comes_before_wishes(store: Store, web: Web) -> None:
    blobs = web.put(1, 2, 3, 4, 5)
    store.prefetch(blobs[:4])
    eventually(lambda: store.counts.fetched == 3)
    assert store.path(blobs[3]).read_bytes() == content(4)
    assert store.path(blobs[4]).read_bytes() == content(5)
    store.prefetch([])
    assert store.path(blobs[0]).read_bytes() == content(1)


def test_new_wishes_replace_old_ones(store: Store, web: Web) -> None:
    blobs = web.put(1, 2, 3, 4)
    for b in blobs[:2]:
        web.script[b.name].append("wait")
    store.prefetch(blobs[:3])
    eventually(lambda: len(web.asked) == 2)
    store.prefetch(blobs[3:])
    web.go_on.set()
    eventually(lambda: store.counts.fetched == 3)
    assert blobs[2].name not in web.asked


def test_a_failure_ahead_of_use_shows_at_use(store: Store, web: Web) -> None:
    (one,) = web.put(1)
    web.script[one.name].append("404")
    missing = blob(9)
    store.prefetch([one, missing])
    eventually(lambda: len(web.asked) == 2)
    assert store.path(one).read_bytes() == content(1)
    with pytest.raises(FileNotFoundError, match=missing.name):
        store.path(missing)


def test_close_does_not_wait_for_a_stalled_server(
    web: Web, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "TIMEOUT_SECONDS", 20.0)
    monkeypatch.setattr(store_module, "CLOSE_SECONDS", 0.1)
    (one,) = web.put(1)
    web.script[one.name].append("wait")
    store = open_store(web.url, config)
    store.prefetch([one])
    eventually(lambda: web.asked)
    store.close()
    assert not (config.folder / one.sha256).exists()
    web.go_on.set()
    part = config.folder / (one.sha256 + cache_module.PART)
    eventually(lambda: not part.exists())  # the thread sees that it is over, and cleans up
    assert cached(config) == set()


EXIT = """
import sys
from pathlib import Path
from bytelm.pipelines.store import Blob, CacheConfig, open_store
store = open_store(sys.argv[1], CacheConfig(Path(sys.argv[2]), 10**6))
store.prefetch([Blob(sys.argv[3], int(sys.argv[4]), sys.argv[5])])
sys.stdin.readline()
"""


def start(web: Web, config: CacheConfig, wanted: Blob) -> subprocess.Popen[bytes]:
    """A process that fetches a blob in the background and ends with its input."""
    arguments = [web.url, str(config.folder), wanted.name, str(wanted.size), wanted.sha256]
    process = subprocess.Popen([sys.executable, "-c", EXIT, *arguments], stdin=subprocess.PIPE)
    eventually(lambda: (config.folder / (wanted.sha256 + cache_module.PART)).exists())
    eventually(lambda: web.asked)
    return process


def test_the_interpreter_ends_in_the_middle_of_a_fetch(web: Web, config: CacheConfig) -> None:
    (one,) = web.put(1)
    web.script[one.name].append("wait")
    process = start(web, config, one)
    process.communicate(b"\n", timeout=20)
    assert process.returncode == 0
    assert not (config.folder / one.sha256).exists()


# Several processes


def test_what_a_killed_process_leaves_is_never_delivered(web: Web, config: CacheConfig) -> None:
    one, two, three = web.put(1, 2, 3)
    web.script[one.name].append("wait")
    process = start(web, config, one)
    eventually(lambda: folder_bytes(config) == SIZE)  # it has reserved its room
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert {path.name for path in config.folder.iterdir()} == {
        one.sha256 + cache_module.PART,
        cache_module.FOLDER_LOCK,
    }
    store = open_store(web.url, CacheConfig(config.folder, 2 * SIZE))
    store.path(two)
    store.path(three)
    assert cached(config) == {two.sha256, three.sha256}
    store.release(two)
    assert store.path(one).read_bytes() == content(1)
    store.close()


def test_a_part_of_a_killed_process_is_begun_anew(
    store: Store, web: Web, config: CacheConfig
) -> None:
    (one,) = web.put(1)
    (config.folder / (one.sha256 + cache_module.PART)).write_bytes(bytes(2 * SIZE))
    assert store.path(one).read_bytes() == content(1)
    assert cached(config) == {one.sha256}


def read_all(store: Store, blobs: list[Blob], seed: int) -> None:
    """Read each blob once, in an order of its own, with wishes; the process ends with 0 if all
    bytes are right."""
    order = random.Random(seed).sample(blobs, len(blobs))
    for position, b in enumerate(order):
        store.prefetch(order[position + 1 : position + 3])
        data = store.path(b).read_bytes()
        store.release(b)
        if hashlib.sha256(data).hexdigest() != b.sha256:
            os._exit(3)
    store.close()


def folder_bytes(config: CacheConfig) -> int:
    """Bytes in the cache at one moment, which its lock makes exact."""
    cache = Cache(config, Counts())
    with cache._locked_folder():
        return sum(path.stat().st_size for path in config.folder.iterdir())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_tight_cache(method: str, web: Web, tmp_path: Path) -> None:
    config = CacheConfig(tmp_path / "cache", 5 * SIZE)
    blobs = web.put(*range(10))
    store = open_store(web.url, config)
    store.prefetch(blobs[:1])  # the children start beside a busy parent
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=read_all, args=(store, blobs, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        most = max(most, folder_bytes(config))
        time.sleep(0.005)
    assert [process.exitcode for process in processes] == [0] * 4
    assert 0 < most <= config.limit_bytes
    store.close()


def test_processes_fetch_a_blob_once(web: Web, config: CacheConfig) -> None:
    (one,) = web.put(1)
    web.script[one.name].append("wait")
    store = open_store(web.url, config)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=read_all, args=(store, [one], seed)) for seed in range(4)]
    for process in processes:
        process.start()
    eventually(lambda: web.asked)
    time.sleep(0.2)
    web.go_on.set()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 4
    assert web.asked == [one.name]
    store.close()


def test_a_parent_s_locks_do_not_live_on_in_its_children(web: Web, config: CacheConfig) -> None:
    blobs = web.put(1, 2, 3, 4)
    store = open_store(web.url, config)
    store.path(blobs[0])
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    try:
        store.release(blobs[0])
        for b in blobs[1:]:
            store.path(b)
        assert cached(config) == {b.sha256 for b in blobs[1:]}
    finally:
        child.terminate()
        child.join()
        store.close()


def test_a_store_can_be_pickled(store: Store, web: Web) -> None:
    (one,) = web.put(1)
    store.path(one)
    copy = pickle.loads(pickle.dumps(store))
    assert isinstance(copy, RemoteStore)
    assert copy.location == store.location
    assert copy.path(one).read_bytes() == content(1)
    assert copy.counts == Counts()
    copy.close()
