"""The manifest of a checkpoint, and the check of every file against it before it is opened.

The manifest has the size and the SHA-256 of every file in the folder and ends with a checksum of
itself. DeepSpeed opens its files with `pickle`, which can run any code. Before that, the names
that each file would import are read without running it and compared with a short list.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bytelm.pipelines.storage.background import no_rest
from bytelm.pipelines.storage.files import fsync_folder, write_atomic

CHECKPOINT_FORMAT = 2
CHECKPOINT_MANIFEST = "manifest.json"
DEEPSPEED_FOLDER = "deepspeed"
"""DeepSpeed's folder in a checkpoint; all of its files are pickles."""
PICKLED_GLOBALS = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""Names that DeepSpeed's files may import in addition to torch's tensors."""

_HASH_BYTES = 1 << 24
"""Read and hashed at a time, without the interpreter's lock: a thread that writes a checkpoint
beside the steps of a training takes the lock between two pieces, and the training's thread waits
for it."""
FileEntry = dict[str, Any]
"""`size` and `sha256` of a file."""


class FormatError(ValueError):
    """A checkpoint of a format version that this bytelm does not read."""


def file_entry(path: Path, rest: Callable[[], None] = no_rest) -> FileEntry:
    """Make a file durable and return its size and SHA-256; `rest` is called after each piece."""
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        digest, size = hashlib.sha256(), 0
        piece = memoryview(bytearray(_HASH_BYTES))
        while count := file.readinto(piece):
            digest.update(piece[:count])
            size += count
            rest()
        return {"size": size, "sha256": digest.hexdigest()}


def write_checkpoint_manifest(folder: Path, name: str, files: dict[str, FileEntry]) -> None:
    """Write a folder's manifest and make the whole tree durable.

    Args:
        name: the name that the folder will have.
        files: the entries of the files of all ranks, by path relative to the folder.
    """
    write_atomic(folder / CHECKPOINT_MANIFEST, _manifest_bytes(CHECKPOINT_FORMAT, name, files))
    for parent, _, _ in os.walk(folder):
        fsync_folder(Path(parent))


def checkpoint_files(folder: Path) -> dict[str, FileEntry]:
    """Read the entries of a checkpoint's files, by path relative to its folder.

    Raises ValueError if the manifest is damaged or names a file outside of the folder, and OSError
    if it cannot be read.
    """
    return parse_manifest((folder / CHECKPOINT_MANIFEST).read_bytes(), folder)


def parse_manifest(data: bytes, folder: Path) -> dict[str, FileEntry]:
    """Return the entries in a manifest's bytes, by path relative to the checkpoint's folder.

    Args:
        folder: the folder, which need not exist; its name is the one that the manifest must have.
    Raises:
        FormatError: if the checkpoint has another format version.
        ValueError: if the manifest is damaged or names a file outside of the folder.
    """
    try:
        files = _parsed(data, folder)
    except FormatError:
        raise
    except (_ManifestDamage, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{CHECKPOINT_MANIFEST} of {folder.name} is damaged: {error}") from error
    for path in files:
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise ValueError(f"{CHECKPOINT_MANIFEST} of {folder.name} names {path!r}")
    return files


def checkpoint_damage(folder: Path, is_read: Callable[[str], bool]) -> str | None:
    """Return what is wrong with a checkpoint, or None.

    The manifest, the list of files and the sizes are always checked.

    Args:
        is_read: selects, by path relative to the folder, the files whose bytes are compared with
            their SHA-256; of those that are pickles, the imports are checked too.
    Raises:
        FormatError: if the checkpoint has another format version.
    """
    try:
        files = _parsed((folder / CHECKPOINT_MANIFEST).read_bytes(), folder)
        present = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
        for path in sorted(present ^ {*files, CHECKPOINT_MANIFEST}):
            return f"{path} is {'not in the manifest' if path in present else 'missing'}"
        for path, entry in files.items():
            damage = _file_damage(folder / path, path, entry, is_read(path))
            if damage:
                return f"{path} {damage}"
    except FormatError:
        raise
    except _ManifestDamage as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{CHECKPOINT_MANIFEST} is damaged ({' '.join(str(error).split())})"
    return None


def pickle_danger(file: Path) -> str | None:
    """Return which names a file of `torch.save` would import without permission, or None.

    The file's code is not run.
    """
    import torch  # here, since the process that uploads checkpoints is to be small

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception as error:  # a hostile file can make the reader raise anything
        return f"is no file of torch.save that can be checked ({' '.join(str(error).split())})"
    forbidden = sorted(set(names) - PICKLED_GLOBALS)
    return f"would run {', '.join(forbidden)} when it is opened" if forbidden else None


class _ManifestDamage(Exception):
    """A manifest that is not the one written for this folder."""


def _parsed(data: bytes, folder: Path) -> dict[str, FileEntry]:
    """The entries of a manifest, once it has matched its own checksum and its folder's name."""
    document = json.loads(data)
    version, name, files = document["format"], document["name"], document["files"]
    if data != _manifest_bytes(version, name, files):
        raise _ManifestDamage(f"{CHECKPOINT_MANIFEST} does not match its own checksum")
    if version != CHECKPOINT_FORMAT:
        raise FormatError(
            f"checkpoint {folder} has format version {version}, this bytelm reads "
            f"{CHECKPOINT_FORMAT}: resume it with the bytelm that wrote it"
        )
    if name != folder.name:
        raise _ManifestDamage(f"{CHECKPOINT_MANIFEST} is that of {name}")
    return files


def _manifest_bytes(version: int, name: str, files: dict[str, FileEntry]) -> bytes:
    document: dict[str, Any] = {
        "format": version,
        "name": name,
        "files": dict(sorted(files.items())),
    }
    checksum = hashlib.sha256(json.dumps(document, indent=1).encode()).hexdigest()
    return json.dumps({**document, "sha256": checksum}, indent=1).encode()


def _file_damage(file: Path, path: str, entry: FileEntry, is_read: bool) -> str | None:
    size = file.stat().st_size
    if size != entry["size"]:
        return f"has {size} bytes in place of {entry['size']}"
    if not is_read:
        return None
    with open(file, "rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != entry["sha256"]:
            return "does not match its SHA-256"
    return pickle_danger(file) if path.startswith(f"{DEEPSPEED_FOLDER}/") else None
