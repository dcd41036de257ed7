"""Copies of a rank's state in the host's memory, from which a thread writes a checkpoint's files
while the next steps change the state itself."""

from __future__ import annotations

import copy
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytelm.pipelines.runtime.memory import host_free_bytes
from bytelm.pipelines.storage.background import no_rest

FREE_SHARE = 0.5
"""Share of the free memory that the copies of all ranks of a machine may take together."""
_PIECE_BYTES = 1 << 22
"""Written at a time."""


class CopyCancelledError(RuntimeError):
    """The run ended before a checkpoint's file was whole."""


def fits_in_memory(value: Any) -> bool:
    """Return whether this rank may copy a value's tensors: every rank of this machine may take the
    same part of its free memory."""
    storages: dict[int, torch.UntypedStorage] = {}
    _find_storages(value, storages)
    needed = sum(storage.nbytes() for storage in storages.values())
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return needed <= FREE_SHARE * host_free_bytes() / ranks_here


def copied_to_memory(value: Any) -> Any:
    """Copy a tree of dictionaries, lists and tuples to the host's memory.

    Tensors that share their bytes share those of the copy, so that a file has them once. Other
    objects are deep copies.
    """
    return _copied(value, {})


def write_state_file(
    value: Any, path: Path, cancelled: threading.Event, rest: Callable[[], None] = no_rest
) -> None:
    """Write a value as `torch.save` does; `rest` is called after each piece.

    Raises:
        CopyCancelledError: once `cancelled` is set.
        OSError, RuntimeError: if it cannot be written.
    """
    with io.BufferedWriter(_StateFile(path, cancelled, rest), io.DEFAULT_BUFFER_SIZE) as file:
        torch.save(value, file)


class _StateFile(io.FileIO):
    """A new file that is written in pieces, with rests between them, and fails once an event is
    set."""

    def __init__(self, path: Path, cancelled: threading.Event, rest: Callable[[], None]):
        super().__init__(path, "w")
        self._cancelled = cancelled
        self._rest = rest

    def write(self, data: Any) -> int:
        if self._cancelled.is_set():
            raise CopyCancelledError
        written = super().write(memoryview(data)[:_PIECE_BYTES])
        self._rest()
        return written


def _find_storages(value: Any, found: dict[int, torch.UntypedStorage]) -> None:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        found[storage._cdata] = storage
    elif isinstance(value, dict):
        for item in value.values():
            _find_storages(item, found)
    elif isinstance(value, list | tuple):
        for item in value:
            _find_storages(item, found)


def _copied(value: Any, storages: dict[int, torch.UntypedStorage]) -> Any:
    """A copy; `storages` has the copies of storages by the address of the original."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage._cdata not in storages:
            target = torch.UntypedStorage(storage.nbytes())
            storages[storage._cdata] = target.copy_(storage)
        place = value.storage_offset(), value.shape, value.stride()
        same = torch.empty(0, dtype=value.dtype).set_(storages[storage._cdata], *place)
        return same.requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        items = copy.copy(value)  # keeps the class, and the version that a state_dict carries
        items.update({key: _copied(item, storages) for key, item in value.items()})
        return items
    if type(value) in (list, tuple):
        return type(value)(_copied(item, storages) for item in value)
    return copy.deepcopy(value)
