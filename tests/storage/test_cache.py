"""The cache delivers right bytes within its limit, whoever shares it and whoever is killed."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from helpers.web_server import SIZE, Web, blob, cached, content, eventually

from bytelm.pipelines.storage import clients, prefetch
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.cache import (
    FOLDER_LOCK,
    PART_SUFFIX,
    Cache,
    CacheConfig,
    StoreStats,
)
from bytelm.pipelines.storage.remote import RemoteStore, open_store
from bytelm.pipelines.storage.store import Store


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_cached_file_is_fetched_again(
    damage: str, store: Store, web: Web, config: CacheConfig
) -> None:
    (one,) = web.put(1)
    path = store.path(one)
    store.release(one)
    data = {"flip": b"!" + content(1)[1:], "cut": content(1)[:-1], "empty": b""}[damage]
    path.write_bytes(data)
    later = open_store(web.url, config)  # a second process, as a process hashes a file once
    assert later.path(one).read_bytes() == content(1)
    assert later.stats.damaged == 1
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
    assert store.stats.evicted == 2
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


def test_a_full_disk_is_an_error_that_says_so(config: CacheConfig) -> None:
    def download(file: BinaryIO) -> None:
        file.write(content(1)[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = Cache(config, StoreStats(), threading.Event())
    with pytest.raises(OSError, match="full below the cache's limit of 600,000 bytes"):
        cache.fill(blob(1), download, (), is_prefetch=False)
    assert cached(config) == set()


def test_files_of_others_are_left_alone(store: Store, web: Web, config: CacheConfig) -> None:
    (config.folder / "notes.txt").write_bytes(bytes(10 * SIZE))
    for b in web.put(1, 2, 3, 4):
        store.path(b)
        store.release(b)
    assert (config.folder / "notes.txt").stat().st_size == 10 * SIZE


# Prefetching


def test_prefetch_goes_in_order_up_to_the_limit(
    store: Store, web: Web, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two threads begin in order, but on a busy machine the second may reserve room first.
    monkeypatch.setattr(prefetch, "PREFETCH_THREADS", 1)
    blobs = web.put(1, 2, 3, 4, 5)
    store.prefetch(blobs)
    eventually(lambda: store.stats.fetched == 3)
    time.sleep(0.2)
    assert all((config.folder / b.sha256).exists() for b in blobs[:3])
    assert store.stats.fetched == 3
    for number, b in enumerate(blobs, 1):
        assert store.path(b).read_bytes() == content(number)
        store.release(b)
    assert sorted(web.asked) == [b.name for b in blobs]


def test_use_comes_before_prefetching(store: Store, web: Web) -> None:
    blobs = web.put(1, 2, 3, 4, 5)
    store.prefetch(blobs[:4])
    eventually(lambda: store.stats.fetched == 3)
    assert store.path(blobs[3]).read_bytes() == content(4)
    assert store.path(blobs[4]).read_bytes() == content(5)
    store.prefetch([])
    assert store.path(blobs[0]).read_bytes() == content(1)


def test_a_new_prefetch_replaces_the_old_one(store: Store, web: Web) -> None:
    blobs = web.put(1, 2, 3, 4)
    for b in blobs[:2]:
        web.script[b.name].append("wait")
    store.prefetch(blobs[:3])
    eventually(lambda: len(web.asked) == 2)
    store.prefetch(blobs[3:])
    web.go_on.set()
    eventually(lambda: store.stats.fetched == 3)
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
    monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 20.0)
    monkeypatch.setattr(prefetch, "CLOSE_SECONDS", 0.1)
    (one,) = web.put(1)
    web.script[one.name].append("wait")
    store = open_store(web.url, config)
    store.prefetch([one])
    eventually(lambda: web.asked)
    store.close()
    assert not (config.folder / one.sha256).exists()
    web.go_on.set()
    part = config.folder / (one.sha256 + PART_SUFFIX)
    eventually(lambda: not part.exists())  # the thread sees that it is over, and cleans up
    assert cached(config) == set()


EXIT = """
import sys
from pathlib import Path
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.cache import CacheConfig
from bytelm.pipelines.storage.remote import open_store
store = open_store(sys.argv[1], CacheConfig(Path(sys.argv[2]), 10**6))
store.prefetch([Blob(sys.argv[3], int(sys.argv[4]), sys.argv[5])])
sys.stdin.readline()
"""


def start(web: Web, config: CacheConfig, wanted: Blob) -> subprocess.Popen[bytes]:
    """A process that fetches a blob in the background and ends with its input."""
    arguments = [web.url, str(config.folder), wanted.name, str(wanted.size), wanted.sha256]
    process = subprocess.Popen([sys.executable, "-c", EXIT, *arguments], stdin=subprocess.PIPE)
    eventually(lambda: (config.folder / (wanted.sha256 + PART_SUFFIX)).exists())
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
        one.sha256 + PART_SUFFIX,
        FOLDER_LOCK,
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
    (config.folder / (one.sha256 + PART_SUFFIX)).write_bytes(bytes(2 * SIZE))
    assert store.path(one).read_bytes() == content(1)
    assert cached(config) == {one.sha256}


def read_all(store: Store, blobs: list[Blob], seed: int) -> None:
    """Read each blob once, in an order that the seed decides, with prefetching. The process exits
    with 3 where bytes are wrong."""
    order = random.Random(seed).sample(blobs, len(blobs))
    for position, b in enumerate(order):
        store.prefetch(order[position + 1 : position + 3])
        data = store.path(b).read_bytes()
        store.release(b)
        if hashlib.sha256(data).hexdigest() != b.sha256:
            os._exit(3)
    store.close()


def folder_bytes(config: CacheConfig) -> int:
    """Bytes in the cache at one moment, counted under its lock."""
    cache = Cache(config, StoreStats(), threading.Event())
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
    assert copy.stats == StoreStats()
    copy.close()
