"""An in-memory cache that is bounded by bytes: of parsed indexes and of decoded payloads."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Keeps the most recently used values, up to a number of bytes but always the newest one."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._size = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, which becomes the newest; None where it is not kept."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Add a value of `size` bytes; the least recently used ones make room for it."""
        self._entries[key] = value, size
        self._size += size
        while self._size > self._max_bytes and len(self._entries) > 1:
            _, (_, freed) = self._entries.popitem(last=False)
            self._size -= freed
