"""`bytelm prepare --on`: work items are decoded and shards are written by tasks on a Ray cluster.

    SET.pieces/           piece files of decoded items, beside the set, until the set is complete
    SET.pieces/input      identifies the input and the options

Sources and set lie where all nodes see them, under the same names. This process lists the sources,
plans the shards, and writes the report and the manifest. A shard is written as soon as all its
documents are decoded, and the pieces that no other shard needs are removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.pipelines.prepare.assembly import ItemCounts, ShardPlanner, ShardRecipe
from bytelm.pipelines.prepare.download import download_sources, downloads_folder
from bytelm.pipelines.prepare.merge import finish_set
from bytelm.pipelines.prepare.piece_files import (
    is_whole,
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
from bytelm.pipelines.prepare.prepare_state import PrepareState
from bytelm.pipelines.prepare.ray_cluster import ray_cluster
from bytelm.pipelines.prepare.ray_container_reader import RayContainerReader
from bytelm.pipelines.prepare.ray_nodes import decode_on_node, start_decoding, write_on_node
from bytelm.pipelines.prepare.ray_tasks import Job, RayTasks
from bytelm.pipelines.prepare.set_folder import (
    clear_folder,
    load_state,
    locked_folder,
    remove_state,
    save_state,
)
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
        sources: see `prepare`. Those at URLs are downloaded by the nodes.
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
    downloads = downloads_folder(out)
    with ray_cluster(address, options.workers) as cluster:
        for _ in range(sum(cluster.nodes().values())):  # while the sources are listed
            cluster.submit(start_decoding, (options.decode,))
        tasks = RayTasks(cluster, console)
        reader = RayContainerReader(tasks, console)
        local = download_sources(sources, downloads, reader)
        local = [source._replace(path=source.path.absolute()) for source in local]
        listed = list_input(local, out, options, reader)
        if (out / SET_MANIFEST).exists():
            prepared = complete_set(out, listed)
        else:
            check_input(listed, options)
            with locked_folder(out):
                prepared = _RayPreparation(listed, out, options, tasks, console).run()
    shutil.rmtree(downloads, ignore_errors=True)
    return prepared


class _RayPreparation:
    """The making of one set, whose folder this process holds."""

    def __init__(
        self,
        listed: PrepareInput,
        out: Path,
        options: PrepareOptions,
        tasks: RayTasks,
        console: Console | None,
    ):
        self._listed = listed
        self._out = out
        self._options = options
        self._tasks = tasks
        self._console = console
        self._folder = out.with_name(f"{out.name}.pieces")
        self._items = work_items(listed.found.documents, listed.units)
        self._state = self._resume()
        self._shards = {shard.name: shard for shard in self._state.shards}
        self._decoded = self._decoded_items()
        self._jobs: deque[Job] = deque()
        self._planner = ShardPlanner(options.shard_bytes)
        self._counts = ItemCounts(listed.units)
        self._planned_items = 0
        self._names: list[str] = []  # of the planned shards, in the manifest's order
        self._recipes: dict[str, ShardRecipe] = {}  # of the planned shards that are not written
        self._users: Counter[int] = Counter()  # recipes by item

    def run(self) -> Prepared:
        """Decode, write, and report what the tasks have not done in an earlier run."""
        self._run_tasks()
        shards = [self._shards[name] for name in self._names]
        if not shards:
            clear_folder(self._out, keep=[])
            shutil.rmtree(self._folder)
        max_bad_share = self._options.max_bad_share
        report = finish_set(self._listed, max_bad_share, self._counts, shards, self._out)
        remove_state(self._out)
        shutil.rmtree(self._folder)
        return Prepared(ShardSet(self._out).root, report, made=True)

    def _resume(self) -> PrepareState:
        """The shards of an interrupted run of the same input, whose pieces are kept, or none."""
        # Not the fingerprint of `prepare`, which would go on after these shards in its own way.
        fingerprint = hashlib.sha256(f"ray {self._listed.fingerprint}".encode()).hexdigest()
        state = load_state(self._out, fingerprint)
        input_file = self._folder / INPUT_FILE
        is_same = input_file.exists() and input_file.read_text() == fingerprint
        if not is_same:
            state = PrepareState(fingerprint)
            shutil.rmtree(self._folder, ignore_errors=True)
        clear_folder(self._out, keep=state.shards)
        save_state(self._out, state)
        self._folder.mkdir(exist_ok=True)
        write_atomic(input_file, fingerprint.encode())
        return state

    def _decoded_items(self) -> set[int]:
        """Numbers of the items that have a whole piece file. Those whose members were removed count
        too, unless no shard is kept, and all members are needed again."""
        names = set(os.listdir(self._folder))
        decoded = set()
        for number in (item.number for item in self._items):
            if summary_path(self._folder, number).name not in names:
                continue
            has_members = members_path(self._folder, number).name in names
            if is_whole(self._folder, number) if has_members else self._state.shards:
                decoded.add(number)
        return decoded

    def _run_tasks(self) -> None:
        """Decode the items that have no piece file, and write each shard as soon as its documents
        are decoded."""
        missing = [item for item in self._items if item.number not in self._decoded]
        self._jobs += (self._decode_job(item) for item in missing)
        total = sum(item.size for item in self._items)
        done = total - sum(item.size for item in missing)
        with Progress(self._console, total, "bytes of files", done) as progress:
            if self._console and done:
                count = len(self._decoded)
                self._console.print(f"resuming after {count} of {len(self._items)} items")
            self._plan_shards()
            for _, result in self._tasks.run(self._jobs):
                if isinstance(result, Shard):
                    self._keep_shard(result)
                else:
                    self._decoded.add(result.number)
                    progress.add(result.size)
                    self._plan_shards()

    def _decode_job(self, item: WorkItem) -> Job:
        def arguments() -> tuple[object, ...]:
            entries = self._listed.units if item.is_table else self._listed.found.documents
            share = entries[item.first : item.stop]
            return (self._folder, item, share, self._options.shares, self._options.decode)

        return Job(self._name(item), decode_on_node, arguments)

    def _plan_shards(self) -> None:
        """Plan the shards of the items before the first one that is not decoded, and let the next
        jobs write those that are complete."""
        planned = []
        while self._planned_items in self._decoded:
            summary = read_summary(self._folder, self._planned_items)
            self._counts.add(summary)
            planned += self._planner.add(self._planned_items, summary)
            self._planned_items += 1
            if self._planned_items == len(self._items):
                planned += self._planner.finish()
        self._names += (recipe.name for recipe in planned)
        missing = [recipe for recipe in planned if recipe.name not in self._shards]
        for recipe in missing:
            self._recipes[recipe.name] = recipe
            self._users.update(recipe.items)
        self._jobs.extendleft(map(self._write_job, reversed(missing)))

    def _write_job(self, recipe: ShardRecipe) -> Job:
        return Job(recipe.name, write_on_node, lambda: (recipe, self._folder, self._out))

    def _keep_shard(self, shard: Shard) -> None:
        """Save that a shard is written, and remove members that no other one needs."""
        self._shards[shard.name] = shard
        self._state.shards.append(shard)
        save_state(self._out, self._state)
        items = self._recipes.pop(shard.name).items
        self._users.subtract(items)
        for item in items - self._planner.open_items:
            if not self._users[item]:
                members_path(self._folder, item).unlink(missing_ok=True)

    def _name(self, item: WorkItem) -> str:
        """The first and the last file of an item."""
        if item.is_table:
            names = [self._listed.units[i].name for i in (item.first, item.stop - 1)]
        else:
            documents = self._listed.found.documents
            ends = (documents[item.first], documents[item.stop - 1])
            names = [ends[0].parts[0].name, ends[1].parts[-1].name]
        return f"{names[0]} to {names[1]}" if names[0] != names[1] else names[0]
