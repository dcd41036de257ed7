"""A web server, and a store that caches what it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.web_server import SIZE, Web, be_impatient, serving

from bytelm.pipelines.storage.cache import CacheConfig
from bytelm.pipelines.storage.remote import open_store
from bytelm.pipelines.storage.store import Store


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as web:
        yield web


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(tmp_path / "cache", 3 * SIZE)


@pytest.fixture
def store(web: Web, config: CacheConfig) -> Iterator[Store]:
    store = open_store(web.url, config)
    yield store
    store.close()
