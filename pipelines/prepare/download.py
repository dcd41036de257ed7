"""Sources of `prepare` at URLs: WebDataset tars, downloaded whole before they are read.

They are kept beside the set until it is complete, so that an interrupted `prepare` does not
download them again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from bytelm.pipelines.prepare.webdataset_tars import expand_braces, is_tar
from bytelm.pipelines.storage.cache import CacheConfig
from bytelm.pipelines.storage.remote import RemoteStore


def download_sources(sources: Sequence[str | Path], folder: Path) -> list[Path]:
    """The local paths of sources. Tars at URLs, with braces expanded, are downloaded to `folder`.

    Raises ValueError for a URL that names no tar or cannot be downloaded.
    """
    paths: list[Path] = []
    for source in sources:
        if "://" in str(source):
            paths += [_download(url, folder) for url in expand_braces(str(source))]
        else:
            paths.append(Path(source))
    return paths


def _download(url: str, folder: Path) -> Path:
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
        os.utime(path, (0, 0))  # a tar that is downloaded again is no newer than the set made of it
    except OSError as error:
        raise ValueError(f"source {error}") from error
    return path
