"""A store delivers the blob that was asked for, or raises an error that names it."""

from __future__ import annotations

import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from helpers.web_server import SIZE, Web, blob, cached, content
from moto.server import ThreadedMotoServer

from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.storage import clients
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.cache import CacheConfig, StoreStats
from bytelm.pipelines.storage.remote import open_store
from bytelm.pipelines.storage.store import LocalStore, Store

# Locations


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
    with pytest.raises(ValueError, match="file://, s3://, gs://, az://, http://, https://, hf://"):
        open_store("ftp://host/set", config)


def test_a_remote_location_needs_a_cache_and_a_client(
    config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="cache folder"):
        open_store("https://host/set", None)
    with pytest.raises(ValueError, match="positive"):
        CacheConfig(config.folder, 0)
    for location, package in (("s3://store/set", "s3fs"), ("gs://bucket/set", "gcsfs")):
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
def test_names_stay_in_their_folder(name: str, tmp_path: Path, store: Store) -> None:
    with pytest.raises(ValueError, match="no name of a shard"):
        Blob(name, 1, "0" * 64)
    for each_store in (store, open_store(tmp_path, None)):
        with pytest.raises(ValueError, match="no name of a shard"):
            each_store.read(name, 10)


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
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 20.0)
        monkeypatch.setattr(clients, "CHUNK_BYTES", SIZE // 3)
        s3 = fsspec.filesystem("s3")
        s3.mkdir("store")
        s3.pipe({f"store/a/set/train-{n:06d}.tar": content(n) for n in (1, 2)})
        s3.pipe("store/a/set/train-000003.tar", content(4))
        store = open_store("s3://store/a/set", config)
        store.prefetch([blob(2)])
        assert store.path(blob(1)).read_bytes() == content(1)
        assert store.path(blob(2)).read_bytes() == content(2)
        assert store.read("train-000002.tar", SIZE) == content(2)
        with pytest.raises(DamageError, match=r"s3://store/a/set/train-000003\.tar"):
            store.path(blob(3))
        with pytest.raises(FileNotFoundError, match=r"s3://store/a/set/manifest\.json"):
            store.read("manifest.json", 10)
        store.close()
    finally:
        server.stop()


# Failures of the network


def test_http_is_fetched_once_and_kept(store: Store, web: Web, config: CacheConfig) -> None:
    one, two = web.put(1, 2)
    assert store.path(one).read_bytes() == content(1)
    assert store.path(one) == store.path(one)
    assert store.path(two).read_bytes() == content(2)
    assert web.asked == [one.name, two.name]
    assert cached(config) == {one.sha256, two.sha256}
    assert store.stats == StoreStats(fetched=2, fetched_bytes=2 * SIZE)
    again = open_store(web.url, config)
    assert again.path(one).read_bytes() == content(1)
    assert again.stats == StoreStats()
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
    assert other.stats.fetched == 0
    other.close()


@pytest.mark.parametrize("answer", ["500", "503", "429", "short", "clean short", "stall"])
def test_a_failure_that_passes_is_tried_again(answer: str, store: Store, web: Web) -> None:
    (one,) = web.put(1)
    web.script[one.name].extend([answer, answer])
    assert store.path(one).read_bytes() == content(1)
    assert store.stats.retries == 2
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
def test_a_failure_that_does_not_pass_is_one_error(
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
def test_a_final_failure_is_not_tried_again(
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
