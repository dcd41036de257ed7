"""The model of a checkpoint at a URL, as training uploads it (`remote_run.py`).

Its two files are fetched to the cache of shards, where they are found again and make room like
shards. Links beside the cache give them the names that a checkpoint has:

    ~/.cache/bytelm/models/<sha256 of the manifest>/step-00000100/model/config.json -> cached file
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from bytelm.pipelines.checkpoints.manifest import (
    CHECKPOINT_MANIFEST,
    FormatError,
    parse_manifest,
)
from bytelm.pipelines.checkpoints.pretrained import CONFIG_FILE, WEIGHTS_FILE
from bytelm.pipelines.checkpoints.remote_run import MAX_MANIFEST_BYTES, stored_steps
from bytelm.pipelines.checkpoints.run_folder import (
    CHECKPOINTS_FOLDER,
    MODEL_FOLDER,
    checkpoint_name,
    step_of_name,
)
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.cache import CACHE_FOLDER, CACHE_GB, CacheConfig, cache_limit
from bytelm.pipelines.storage.destination import open_destination
from bytelm.pipelines.storage.files import replace_atomic
from bytelm.pipelines.storage.remote import open_store, remote_scheme
from bytelm.pipelines.storage.store import Store

_LINKS_FOLDER = "models"
"""Beside the cache's folder."""


@contextmanager
def fetched_model(url: str) -> Iterator[Path]:
    """Fetch the newest model of a run at a URL, or that of one checkpoint, unless it is cached.

    Checkpoints of a run whose manifest or model is damaged are passed over and named on stderr.

    Yields:
        The exported model's folder, whose files stay until the end of the body. They have the size
        and the SHA-256 that the checkpoint's manifest names.
    Raises:
        ValueError: for a URL that is neither a run nor a checkpoint, and a cache that is too small.
        DamageError: if the checkpoint, or every one of the run, is damaged.
        OSError: if the store fails.
    """
    cache = _cache(url)
    refused = []
    for checkpoint in _checkpoints(url.rstrip("/")):
        with closing(open_store(f"{checkpoint}/{MODEL_FOLDER}", cache)) as store:
            try:
                folder = _fetch(checkpoint, store, cache)
            except FileNotFoundError as error:
                if checkpoint == url.rstrip("/"):
                    raise ValueError(f"no whole checkpoint at {url}: {error}") from error
                refused.append(f"{checkpoint}: {error}")
                continue
            except DamageError as error:
                refused.append(f"{checkpoint}: {error}")
                continue
            for line in refused:
                print(f"refused {line}", file=sys.stderr)
            yield folder
            return
    raise DamageError(f"no checkpoint of {url} can be used: {'; '.join(refused)}")


def newest_checkpoint(url: str) -> str:
    """Return the URL of the checkpoint whose model `fetched_model` fetches; raises as it does."""
    with fetched_model(url) as model:
        name = model.parent.name
    run = url.rstrip("/").removesuffix(f"/{CHECKPOINTS_FOLDER}/{name}")
    return f"{run}/{CHECKPOINTS_FOLDER}/{name}"


def _checkpoints(url: str) -> list[str]:
    """The URLs of a run's checkpoints, newest first; that of a checkpoint itself."""
    if step_of_name(url.rpartition("/")[2]) is not None:
        return [url]
    if remote_scheme(url) in ("http", "https"):
        raise ValueError(
            f"{url}: a web server does not list a run's checkpoints: name one of them, as "
            f"{url}/{CHECKPOINTS_FOLDER}/{checkpoint_name(100)}"
        )
    with open_destination(url) as store:
        steps = stored_steps(store)
    if not steps:
        raise ValueError(
            f"{url} is neither a run with a checkpoint nor a checkpoint: name the "
            f"train.checkpoint_url of a run, or URL/{CHECKPOINTS_FOLDER}/{checkpoint_name(100)}"
        )
    return [f"{url}/{CHECKPOINTS_FOLDER}/{checkpoint_name(step)}" for step in steps]


def _fetch(checkpoint: str, store: Store, cache: CacheConfig) -> Path:
    """Have a checkpoint's model in the cache, and its files in use by `store`; returns the folder
    of links. Raises DamageError or FileNotFoundError if it is not whole."""
    with closing(open_store(checkpoint, cache)) as manifests:
        manifest = manifests.read(CHECKPOINT_MANIFEST, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(manifest).hexdigest()
    folder = cache.folder.parent / _LINKS_FOLDER / digest / checkpoint.rpartition("/")[2]
    try:
        files = parse_manifest(manifest, folder)
        entries = {name: files[f"{MODEL_FOLDER}/{name}"] for name in (CONFIG_FILE, WEIGHTS_FILE)}
        blobs = [Blob(name, entry["size"], entry["sha256"]) for name, entry in entries.items()]
    except FormatError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise DamageError(f"{CHECKPOINT_MANIFEST} is of no whole model: {error}") from error
    model = folder / MODEL_FOLDER
    model.mkdir(parents=True, exist_ok=True)
    for blob in blobs:
        replace_atomic(model / blob.name, partial(os.symlink, store.path(blob)))
    return model


def _cache(url: str) -> CacheConfig:
    try:
        folder = Path(CACHE_FOLDER).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{url} is remote, and there is no home folder for its cache: set HOME"
        ) from error
    return CacheConfig(folder, cache_limit(CACHE_GB))
