"""`bytelm prepare --on`: work items are decoded and shards are written by tasks on a Ray cluster.

    SET.pieces/           piece files of decoded items, beside the set, until the set is complete
    SET.pieces/input      identifies the input and the options

Sources and set lie where all nodes see them, under the same names. This process lists the sources,
plans the shards, and writes the report and the manifest.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare.assembly import ShardRecipe, count_items, plan_shards, write_shard
from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.documents import SourceDocument
from bytelm.pipelines.prepare.download import download_sources
from bytelm.pipelines.prepare.parts import finish_set
from bytelm.pipelines.prepare.piece_files import (
    PieceSummary,
    decode_item,
    members_path,
    read_summary,
    summary_path,
)
from bytelm.pipelines.prepare.prepare import (
    Prepared,
    PrepareInput,
    PrepareOptions,
    check_input,
    complete_set,
    list_input,
)
from bytelm.pipelines.prepare.ray_cluster import RayCluster, ray_cluster
from bytelm.pipelines.prepare.ray_tasks import Job, RayTasks
from bytelm.pipelines.prepare.set_folder import (
    PREPARE_STATE,
    PrepareState,
    clear_folder,
    locked_folder,
)
from bytelm.pipelines.prepare.tables import TableUnit
from bytelm.pipelines.prepare.work_items import WorkItem, work_items
from bytelm.pipelines.runtime.progress import Progress
from bytelm.pipelines.shards.format import SET_MANIFEST, Shard
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.storage.files import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

INPUT_FILE = "input"


def prepare_on_ray(
    sources: Sequence[str | Path],
    out: Path,
    options: PrepareOptions,
    address: str,
    console: Console | None = None,
) -> Prepared:
    """Make a shard set on a Ray cluster, with the bytes that `prepare` gives it.

    Args:
        sources: see `prepare`. Those at URLs are downloaded by this process.
        out: the set's folder, which all nodes see under this path.
        options: see `prepare`; `workers` counts the CPUs of a local cluster.
        address: see `ray_cluster`.
        console: shows the progress; None shows nothing.
    Returns:
        see `prepare`.
    Raises:
        ValueError: as `prepare`; also where Ray is not installed, no cluster answers, or a node
            has another version of bytelm or does not see the sources or the set.
        RuntimeError: where processes die at an item again and again, or there is no node.
        OSError: where a disk does not take the set.
    """
    out = out.absolute()  # tasks run in another folder
    downloads = out.with_name(f"{out.name}.sources")
    with ray_cluster(address, options.workers) as cluster:
        local = download_sources(sources, downloads)
        local = [source._replace(path=source.path.absolute()) for source in local]
        listed = list_input(local, out, options)
        if (out / SET_MANIFEST).exists():
            prepared = complete_set(out, listed)
        else:
            check_input(listed, options.max_bad_share)
            with locked_folder(out):
                prepared = _RayPreparation(listed, out, options, cluster, console).run()
    shutil.rmtree(downloads, ignore_errors=True)
    return prepared


class _RayPreparation:
    """The making of one set, whose folder this process holds."""

    def __init__(
        self,
        listed: PrepareInput,
        out: Path,
        options: PrepareOptions,
        cluster: RayCluster,
        console: Console | None,
    ):
        self._listed = listed
        self._out = out
        self._options = options
        self._tasks = RayTasks(cluster, console)
        self._console = console
        self._folder = out.with_name(f"{out.name}.pieces")
        self._items = work_items(listed.found.documents, listed.units)
        self._state = self._resume()

    def run(self) -> Prepared:
        """Decode, write, and report what the tasks have not done in an earlier run."""
        self._decode_items()
        recipes = plan_shards(self._summaries(), self._options.shard_bytes)
        shards = self._write_shards(recipes)
        counts = count_items(self._summaries(), self._listed.units)
        if not shards:
            clear_folder(self._out, keep=[])
            shutil.rmtree(self._folder)
        max_bad_share = self._options.max_bad_share
        report = finish_set(self._listed, max_bad_share, counts, shards, self._out)
        (self._out / PREPARE_STATE).unlink()
        shutil.rmtree(self._folder)
        return Prepared(ShardSet(self._out).root, report, made=True)

    def _resume(self) -> PrepareState:
        """The shards of an interrupted run of the same input, whose pieces are kept, or none."""
        # Not the fingerprint of `prepare`, which would go on after these shards in its own way.
        fingerprint = hashlib.sha256(f"ray {self._listed.fingerprint}".encode()).hexdigest()
        state = PrepareState.load(self._out, fingerprint)
        input_file = self._folder / INPUT_FILE
        is_same = input_file.exists() and input_file.read_text() == fingerprint
        has_begun = (self._out / PREPARE_STATE).exists()
        if not is_same or (has_begun and not state.shards):
            # A shard that is gone may need pieces that were removed when it was written.
            state = PrepareState(fingerprint)
            if not is_same or self._lacks_members():
                shutil.rmtree(self._folder, ignore_errors=True)
        clear_folder(self._out, keep=state.shards)
        state.save(self._out)
        self._folder.mkdir(exist_ok=True)
        write_atomic(input_file, fingerprint.encode())
        return state

    def _lacks_members(self) -> bool:
        """Whether members of a decoded item were removed."""
        names = set(os.listdir(self._folder))
        return any(
            summary_path(self._folder, i.number).name in names
            and members_path(self._folder, i.number).name not in names
            for i in self._items
        )

    def _summaries(self) -> Iterator[PieceSummary]:
        return (read_summary(self._folder, item.number) for item in self._items)

    def _decode_items(self) -> None:
        """Decode the items that have no piece file."""
        done = set(os.listdir(self._folder))
        missing = [i for i in self._items if summary_path(self._folder, i.number).name not in done]
        total = sum(item.size for item in self._items)
        done_bytes = total - sum(item.size for item in missing)
        jobs = [Job(self._name(item), (self._folder, item)) for item in missing]
        with Progress(self._console, total, done=done_bytes) as progress:
            if self._console and done_bytes:
                count = len(self._items) - len(missing)
                self._console.print(f"resuming after {count} of {len(self._items)} items")
            for number, _ in self._tasks.run(decode_on_node, jobs, self._with_entries):
                progress.add(missing[number].size)

    def _with_entries(self, job: Job) -> tuple[object, ...]:
        """The arguments of a job of decoding, with the item's documents or units."""
        folder, item = job.arguments
        entries = self._listed.units if item.is_table else self._listed.found.documents
        share = entries[item.first : item.stop]
        return (folder, item, share, self._options.shares, self._options.decode)

    def _name(self, item: WorkItem) -> str:
        """The first and the last file of an item."""
        if item.is_table:
            names = [self._listed.units[i].name for i in (item.first, item.stop - 1)]
        else:
            documents = self._listed.found.documents
            ends = (documents[item.first], documents[item.stop - 1])
            names = [ends[0].parts[0].name, ends[1].parts[-1].name]
        return f"{names[0]} to {names[1]}" if names[0] != names[1] else names[0]

    def _write_shards(self, recipes: Sequence[ShardRecipe]) -> list[Shard]:
        """Write the shards that are missing; all shards, in the manifest's order."""
        by_name = {shard.name: shard for shard in self._state.shards}
        names = [f"{recipe.split}-{recipe.number:06d}.tar" for recipe in recipes]
        missing = [i for i, name in enumerate(names) if name not in by_name]
        users = Counter(item for i in missing for item in _items_of(recipes[i]))
        jobs = [Job(names[i], (recipes[i], self._folder, self._out)) for i in missing]
        total = sum(recipe.size for recipe in recipes)
        done = total - sum(recipes[i].size for i in missing)
        with Progress(self._console, total, done=done) as progress:
            for number, shard in self._tasks.run(write_on_node, jobs):
                recipe = recipes[missing[number]]
                by_name[shard.name] = shard
                self._state.shards.append(shard)
                self._state.save(self._out)
                for item in _items_of(recipe):
                    users[item] -= 1
                    if not users[item]:
                        members_path(self._folder, item).unlink(missing_ok=True)
                progress.add(recipe.size)
        return [by_name[name] for name in names]


def decode_on_node(
    folder: Path,
    item: WorkItem,
    entries: Sequence[SourceDocument] | Sequence[TableUnit],
    shares: tuple[float, float, float],
    options: DecodeOptions,
) -> None:
    """Decode a work item: the task of a node.

    Args:
        folder: of the piece files.
        item: which documents or units.
        entries: the documents, or the units.
        shares: of train, val and test.
        options: how files are decoded.
    Raises:
        ValueError: where this node does not see the sources or the folder.
    """
    _check_seen([str(folder)])
    _check_seen(_paths(entries))
    pool = _kept_pool(options)
    documents = [entry for entry in entries if isinstance(entry, SourceDocument)]
    units = [entry for entry in entries if isinstance(entry, TableUnit)]
    try:
        decode_item(item, documents, units, shares, pool, folder)
    except BaseException:  # the pool may still be busy with this item
        _kept_pool.cache_clear()
        pool.__exit__()
        raise


def write_on_node(recipe: ShardRecipe, folder: Path, out: Path) -> Shard:
    """Write a shard: the task of a node. It is moved to the set when it is whole, so that the same
    task of a node that was lost and still runs does not disturb it.

    Raises ValueError where this node does not see the set.
    """
    _check_seen([str(folder)])
    with tempfile.TemporaryDirectory(dir=folder, prefix="shard-") as temporary:
        shard = write_shard(recipe, folder, Path(temporary))
        for name in (shard.index_name, shard.name):
            os.replace(Path(temporary) / name, out / name)
    return shard


@functools.lru_cache(maxsize=1)
def _kept_pool(options: DecodeOptions) -> DecodePool:
    """The pool of this process, which serves one task after the other: its worker takes a moment
    to start."""
    return DecodePool(options, workers=1)


def _items_of(recipe: ShardRecipe) -> set[int]:
    return {extent.item for extent in recipe.extents}


def _paths(entries: Sequence[SourceDocument] | Sequence[TableUnit]) -> Iterator[str]:
    """The paths of the files of documents or units."""
    for entry in entries:
        if isinstance(entry, TableUnit):
            yield entry.path
        else:
            yield from (part.path for part in entry.parts if part.path is not None)


def _check_seen(paths: Sequence[str] | Iterator[str]) -> None:
    """Raise ValueError where this node sees none of the paths. A single one may have been deleted
    since the sources were listed, which makes it a skipped file."""
    path = ""
    for path in paths:
        if os.path.exists(path):
            return
    raise ValueError(
        f"node {socket.gethostname()} does not see {path}: sources and set must lie on a file "
        "system that all nodes mount at the same place"
    )
