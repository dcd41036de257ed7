"""The tasks of `bytelm prepare --on` on a node of the Ray cluster.

A process of Ray's runs one task after the other, and keeps its decoding process meanwhile. It
imports nothing that the driver alone needs, since it is started for each run.
"""

from __future__ import annotations

import functools
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare.assembly import ShardRecipe, write_shard
from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.documents import SourceDocument
from bytelm.pipelines.prepare.piece_files import decode_items
from bytelm.pipelines.prepare.tables import TableUnit
from bytelm.pipelines.prepare.work_items import WorkItem, check_seen, paths_of
from bytelm.pipelines.runtime.allocator import keep_freed_memory
from bytelm.pipelines.shards.format import Shard

if TYPE_CHECKING:
    from bytelm.pipelines.prepare.container_reader import InspectionProcess
    from bytelm.pipelines.prepare.table_inspection import TableInspection


def start_decoding(options: DecodeOptions) -> None:
    """Start the decoding process of this process, which tasks will find running.

    Args:
        options: how files will be decoded.
    """
    _kept_pool(options)


def call_on_node(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a function for each of many arguments, and return its results.

    Args:
        function: a function of a module.
        calls: the arguments; the first one is a path, whose folder the node must see.
    Raises:
        ValueError: where the node does not see the folder of a path.
        Exception: what the function raises.
    """
    for path, *_ in calls:
        check_seen([os.path.dirname(path)], _this_node())
    return [function(*call) for call in calls]


def inspect_on_node(*question: Any) -> TableInspection:
    """Inspect a table in a child process, which later calls find running.

    Args:
        question: the fields of a TableQuestion.
    """
    from bytelm.pipelines.prepare.container_reader import TableQuestion

    return _kept_inspection().ask(TableQuestion(*question))


def decode_on_node(
    folder: Path,
    item: WorkItem,
    entries: Sequence[SourceDocument] | Sequence[TableUnit],
    shares: tuple[float, float, float],
    options: DecodeOptions,
) -> WorkItem:
    """Decode a work item, and return it.

    Args:
        folder: of the piece files.
        item: which documents or units.
        entries: the documents, or the units.
        shares: of train, val and test.
        options: how files are decoded.
    Raises:
        ValueError: where this node does not see the sources or the folder.
    """
    check_seen([str(folder)], _this_node())
    check_seen(paths_of(entries), _this_node())
    pool = _kept_pool(options)
    documents = [entry for entry in entries if isinstance(entry, SourceDocument)]
    units = [entry for entry in entries if isinstance(entry, TableUnit)]
    try:
        for _ in decode_items([item], documents, units, shares, pool, folder, is_durable=False):
            pass
    except BaseException:  # the pool may still be busy with this item
        _kept_pool.cache_clear()
        pool.__exit__()
        raise
    return item


def write_on_node(recipe: ShardRecipe, folder: Path, out: Path) -> Shard:
    """Write a shard. It is moved to the set when it is whole, so that the same task of a node that
    was lost and still runs does not disturb it.

    Raises ValueError where this node does not see the set.
    """
    check_seen([str(folder)], _this_node())
    with tempfile.TemporaryDirectory(dir=folder, prefix="shard-") as temporary:
        shard = write_shard(recipe, folder, Path(temporary))
        for name in (shard.index_name, shard.name):
            os.replace(Path(temporary) / name, out / name)
    return shard


@functools.lru_cache(maxsize=1)
def _kept_pool(options: DecodeOptions) -> DecodePool:
    """The pool of this process, which serves one task after the other."""
    keep_freed_memory()
    return DecodePool(options, workers=1)


@functools.lru_cache(maxsize=1)
def _kept_inspection() -> InspectionProcess:
    from bytelm.pipelines.prepare.container_reader import InspectionProcess

    return InspectionProcess()


def _this_node() -> str:
    return f"node {socket.gethostname()}"
