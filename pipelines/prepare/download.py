"""Sources of `prepare` that lie at URLs: WebDataset tars, fetched whole before they are read.

They are kept beside the set until it is complete, so that a prepare that was interrupted does not
fetch them again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from bytelm.pipelines.prepare.webdataset_tars import expand_braces, is_tar
from bytelm.pipelines.storage.cache import CacheConfig
from bytelm.pipelines.storage.remote import RemoteStore


def fetch_sources(sources: Sequence[str | Path], folder: Path) -> list[Path]:
    """The local paths of sources; the tars of URLs, with braces expanded, are fetched to a folder.

    Raises ValueError for a URL that names no tar or cannot be had.
    """
    paths: list[Path] = []
    for source in sources:
        if "://" not in str(source):
            paths.append(Path(source))
            continue
        paths += [_fetch(url, folder) for url in expand_braces(str(source))]
    return paths


def _fetch(url: str, folder: Path) -> Path:
    location, _, name = url.rpartition("/")
    if not is_tar(name):
        raise ValueError(f"{url} is no tar: a source at a URL is a WebDataset shard, or a pattern")
    path = folder / hashlib.sha256(location.encode()).hexdigest()[:8] / name
    if path.exists():
        return path
    store = RemoteStore(location, CacheConfig(folder, limit_bytes=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.download(name, path)
        os.utime(path, (0, 0))  # what was fetched again is no newer than the set made of it
    except OSError as error:
        raise ValueError(f"source {error}") from error
    return path
