"""Whether a checkpoint is what was written: a manifest of every file, and a look into pickles.

The manifest names size and SHA-256 of every file of a folder and ends with a checksum of itself.
DeepSpeed opens its files with `pickle`, which can run anything; so before it does, the names that
each of them would import are read without running it, and compared with a short list.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bytelm.pipelines.storage.files import fsync_folder, write_atomic

CHECKPOINT_FORMAT = 2
CHECKPOINT_MANIFEST = "manifest.json"
PICKLES = "deepspeed/"
PICKLED_GLOBALS = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""What DeepSpeed's files may import beside torch's own tensors."""

FileEntry = dict[str, Any]
"""`size` and `sha256` of a file."""


class FormatError(ValueError):
    """A checkpoint that another version of bytelm wrote."""


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file, which is made durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def write_checkpoint_manifest(folder: Path, name: str, files: dict[str, FileEntry]) -> None:
    """Write the manifest of a folder that will have a name, and make the whole tree durable.

    Args:
        files: by their paths in the folder; those of other processes too.
    """
    write_atomic(folder / CHECKPOINT_MANIFEST, _manifest_bytes(CHECKPOINT_FORMAT, name, files))
    for parent, _, _ in os.walk(folder):
        fsync_folder(Path(parent))


def _manifest_bytes(version: int, name: str, files: dict[str, FileEntry]) -> bytes:
    document: dict[str, Any] = {
        "format": version,
        "name": name,
        "files": dict(sorted(files.items())),
    }
    text = json.dumps(document, indent=1)
    return json.dumps(
        {**document, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1
    ).encode()


def checkpoint_damage(folder: Path, is_read: Callable[[str], bool]) -> str | None:
    """What is wrong with a checkpoint, or None.

    The manifest, the list of files and their sizes are always checked; the bytes, and in pickles
    what they would import, of those files whose path in the folder `is_read` wants.

    Raises FormatError for another format version.
    """
    try:
        data = (folder / CHECKPOINT_MANIFEST).read_bytes()
        document = json.loads(data)
        version, name, files = document["format"], document["name"], document["files"]
        if data != _manifest_bytes(version, name, files):
            return f"{CHECKPOINT_MANIFEST} does not match its own checksum"
        if version != CHECKPOINT_FORMAT:
            raise FormatError(
                f"checkpoint {folder} has format version {version}, this bytelm reads "
                f"{CHECKPOINT_FORMAT}: resume it with the bytelm that wrote it"
            )
        if name != folder.name:
            return f"{CHECKPOINT_MANIFEST} is that of {name}"
        found = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
        for path in sorted(found ^ {*files, CHECKPOINT_MANIFEST}):
            return f"{path} is {'not in the manifest' if path in found else 'missing'}"
        for path, entry in files.items():
            cause = _file_damage(folder / path, path, entry, is_read(path))
            if cause:
                return f"{path} {cause}"
    except FormatError:
        raise
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{CHECKPOINT_MANIFEST} is damaged ({' '.join(str(error).split())})"
    return None


def _file_damage(file: Path, path: str, entry: FileEntry, is_read: bool) -> str | None:
    size = file.stat().st_size
    if size != entry["size"]:
        return f"has {size} bytes in place of {entry['size']}"
    if not is_read:
        return None
    with open(file, "rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != entry["sha256"]:
            return "does not match its SHA-256"
    return pickle_danger(file) if path.startswith(PICKLES) else None


def pickle_danger(file: Path) -> str | None:
    """What a file of `torch.save` would import and may not, or None. The file is not run."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception as error:  # a hostile file can make the reader raise anything
        return f"is no file of torch.save that can be checked ({' '.join(str(error).split())})"
    unknown = sorted(set(names) - PICKLED_GLOBALS)
    return f"would run {', '.join(unknown)} when it is opened" if unknown else None
