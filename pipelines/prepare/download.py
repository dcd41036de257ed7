"""Sources of `prepare` at URLs: tars and tables, downloaded whole before they are read.

They are kept beside the set until it is complete, so that an interrupted `prepare` does not
download them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bytelm.pipelines.prepare.container_reader import ContainerReader, Download
from bytelm.pipelines.prepare.scan import Source, is_container, local_source
from bytelm.pipelines.prepare.webdataset_tars import expand_braces
from bytelm.pipelines.storage.remote import find_objects


def downloads_folder(out: Path) -> Path:
    """The folder of sources at URLs, beside the set in `out`, until it is complete."""
    return out.with_name(f"{out.name}.sources")


def download_sources(
    sources: Sequence[str | Path], folder: Path, reader: ContainerReader
) -> list[Source]:
    """The sources on this machine. Tars and tables at URLs are downloaded to `folder` by `reader`.

    A URL can be a pattern with braces, and with `*` where the store lists its objects; a URL that
    ends in a slash stands for all tars and tables below.

    Raises ValueError for a URL that names no tar or table, or cannot be downloaded.
    """
    found: list[Source] = []
    downloads: list[Download] = []
    for source in sources:
        if "://" not in str(source):
            found.append(local_source(source))
            continue
        for pattern in expand_braces(str(source)):
            for url in _matching(pattern):
                copy, download = _place(url, folder)
                found.append(copy)
                if not copy.path.exists():
                    copy.path.parent.mkdir(parents=True, exist_ok=True)
                    downloads.append(download)
    reader.download(downloads)
    return found


def _matching(pattern: str) -> list[str]:
    """The URLs that a pattern stands for."""
    is_folder = pattern.endswith("/")
    if not is_folder and "*" not in pattern:
        return [pattern]
    try:
        urls = find_objects(f"{pattern}**" if is_folder else pattern)
    except OSError as error:
        raise ValueError(f"source {error}") from error
    urls = [url for url in urls if is_container(url)]
    if not urls:
        raise ValueError(f"no tar or table matches {pattern}")
    return urls


def _place(url: str, folder: Path) -> tuple[Source, Download]:
    """The local copy of a tar or table, which keeps the names of its URL's folders, and how it
    comes there."""
    location, _, name = url.rpartition("/")
    if not is_container(name):
        raise ValueError(
            f"{url} is no tar and no table: a source at a URL is a WebDataset shard, a table "
            "(.jsonl, .csv, .parquet), or a pattern of them"
        )
    path = folder / hashlib.sha256(location.encode()).hexdigest()[:8] / name
    parts = urlsplit(location)
    place = (parts.netloc, *(unquote(part) for part in parts.path.split("/") if part))
    return Source(path, place), Download(str(path), url)
