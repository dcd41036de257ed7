"""A run's checkpoints at an object store, which has the files of the run's folder by their names.

    URL/config.json                                 the run's config
    URL/checkpoints/step-00000100/...               the files of a checkpoint
    URL/checkpoints/step-00000100/manifest.json     written last: without it there is no checkpoint

`uploads.py` has them written; this file finds and fetches them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from bytelm.pipelines.checkpoints.manifest import (
    CHECKPOINT_MANIFEST,
    FormatError,
    checkpoint_damage,
    checkpoint_files,
)
from bytelm.pipelines.checkpoints.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    TEMPORARY_PREFIX,
    checkpoint_folders,
    checkpoint_name,
    damage_outside_tensors,
    parse_config,
)
from bytelm.pipelines.storage.destination import Destination, open_destination
from bytelm.pipelines.storage.files import rename_durably

MAX_MANIFEST_BYTES = 1 << 26
_MANIFEST_NAME = re.compile(rf"{CHECKPOINTS_FOLDER}/step-(\d{{8,}})/{CHECKPOINT_MANIFEST}")


def check_unused(url: str) -> None:
    """Raise ValueError if a URL has checkpoints, which a new run must not mix with its own."""
    with open_destination(url) as store:
        if steps := stored_steps(store):
            raise ValueError(
                f"{url} has checkpoints, up to step {steps[0]}: continue with --resume, or choose "
                "another train.checkpoint_url"
            )


def fetch_config(url: str) -> dict[str, Any]:
    """Read the config that a run at a URL was last trained with.

    Raises:
        ValueError: for a URL that cannot be used or has no such config.
        OSError: if the store fails.
    """
    with open_destination(url) as store:
        try:
            values = parse_config(store.read(CONFIG_FILE, MAX_MANIFEST_BYTES))
        except FileNotFoundError:
            values = None
    if values is None:
        raise ValueError(f"{url} has no {CONFIG_FILE} of a run: name its CONFIG, or another URL")
    return values


def stored_steps(store: Destination) -> list[int]:
    """Return the steps of the checkpoints that a store has a manifest of, newest first."""
    return steps_with_manifest(store.list(CHECKPOINTS_FOLDER))


def fetch_newest(url: str, run: Path) -> list[str]:
    """Fetch the newest whole checkpoint of a URL to a run's folder, if the folder has none as new.

    Returns:
        A line for each checkpoint that was fetched, or is damaged in the store.
    Raises:
        ValueError: for a URL that cannot be used.
        OSError: if the store fails.
    """
    local = next(
        (step for step, path in checkpoint_folders(run) if not damage_outside_tensors(path)), -1
    )
    lines = []
    with open_destination(url) as store:
        for step in stored_steps(store):
            if step <= local:
                break
            damage = _fetch(store, run, checkpoint_name(step))
            lines.append(f"{checkpoint_name(step)} of {url}: {damage or 'fetched'}")
            if not damage:
                break
    return lines


def _fetch(store: Destination, run: Path, name: str) -> str | None:
    """Fetch a checkpoint, which gets its name once it agrees with its manifest; otherwise return
    what is wrong with it."""
    folder = run / CHECKPOINTS_FOLDER / name
    parent = run / CHECKPOINTS_FOLDER / f"{TEMPORARY_PREFIX}-fetched"
    shutil.rmtree(parent, ignore_errors=True)
    fetched = parent / name  # the manifest has the folder's name
    fetched.mkdir(parents=True)
    try:
        path = f"{CHECKPOINTS_FOLDER}/{name}/{CHECKPOINT_MANIFEST}"
        (fetched / CHECKPOINT_MANIFEST).write_bytes(store.read(path, MAX_MANIFEST_BYTES))
        try:
            paths = checkpoint_files(fetched)
        except FormatError:
            raise
        except ValueError as error:
            return str(error)
        for path in paths:
            (fetched / path).parent.mkdir(parents=True, exist_ok=True)
            store.download(f"{CHECKPOINTS_FOLDER}/{name}/{path}", fetched / path)
        if damage := checkpoint_damage(fetched, lambda path: True):
            return damage
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one of this step
        rename_durably(fetched, folder)
        return None
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def steps_with_manifest(objects: dict[str, int]) -> list[int]:
    """List the steps of the checkpoints that have a manifest, newest first.

    Args:
        objects: sizes of a store's objects by their names.
    """
    matches = map(_MANIFEST_NAME.fullmatch, objects)
    return sorted((int(match[1]) for match in matches if match), reverse=True)
