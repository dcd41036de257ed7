"""`bytelm prepare --part i/n` and `bytelm merge`: a set made by an array of jobs.

The parts run at any time, in any order, on any machines that see one filesystem. Each lists the
sources itself and decodes every n-th work item to a piece file. `merge` writes the shards, whose
bytes are those of `prepare` in one process, and removes the piece files as it goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bytelm.pipelines.prepare.assembly import (
    ItemCounts,
    ShardPlanner,
    ShardRecipe,
    write_shard,
)
from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.download import download_sources
from bytelm.pipelines.prepare.losses import Losses, check_losses, count_losses
from bytelm.pipelines.prepare.piece_files import (
    decode_items,
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
    finish_report,
    list_input,
)
from bytelm.pipelines.prepare.report import write_skipped
from bytelm.pipelines.prepare.set_folder import (
    PARTS_FOLDER,
    held_folder,
    is_whole,
    open_parts_folder,
)
from bytelm.pipelines.prepare.staged_input import StagedInput, load_staged_input, stage_input
from bytelm.pipelines.prepare.work_items import WorkItem, items_of_part
from bytelm.pipelines.runtime.progress import Progress
from bytelm.pipelines.shards.format import SET_MANIFEST, Shard
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import write_set_manifest
from bytelm.pipelines.storage.files import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

MERGED = "merged.json"


@dataclass(frozen=True)
class PreparedPart:
    """A part of a set that is decoded."""

    items: int
    """Work items of the part."""
    size: int
    """Their source bytes."""
    made: bool
    """False where all of them were decoded before."""


def prepare_part(
    sources: Sequence[str | Path],
    out: Path,
    options: PrepareOptions,
    part: int,
    parts: int,
    console: Console | None = None,
) -> PreparedPart:
    """Decode one of `parts` shares of a set. What an interrupted call has decoded is kept.

    Args:
        sources, options, console: see `prepare`.
        out: the set's folder, on a filesystem that all parts and `merge` see.
        part: number of the share, from 0.
        parts: how many shares there are.
    Raises:
        ValueError: see `prepare`; and where other parts in `out` have other sources, options or
            another number of parts, or this part runs already.
        RuntimeError: where decoding processes do not start.
        OSError: where the disk does not take the pieces.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part {part}/{parts} is none: the parts are 0 to {parts - 1}")
    found_sources = download_sources(sources, _downloads(out))
    listed = list_input(found_sources, out, options)
    if (out / SET_MANIFEST).exists():
        complete_set(out, listed)
        return PreparedPart(0, 0, made=False)
    check_input(listed, options.max_bad_share)
    open_parts_folder(out)
    staged = stage_input(out, listed, options, parts)
    folder = out / PARTS_FOLDER
    items = items_of_part(staged.items, part, parts)
    with held_folder(folder / f"part-{part}.lock", f"part {part}/{parts} of {out}"):
        missing = [item for item in items if not summary_path(folder, item.number).exists()]
        if missing:
            _decode_items(missing, items, staged, options, folder, console)
    return PreparedPart(len(items), sum(item.size for item in items), made=bool(missing))


def merge_parts(out: Path, console: Console | None = None) -> Prepared:
    """Make the set of all its parts. An interrupted call is resumed.

    Args:
        out: the set's folder.
        console: shows the progress; None shows nothing.
    Raises:
        ValueError: where a part is missing, too much of the sources is lost, or another merge
            runs.
        DamageError: where `out` holds a complete set whose manifest is damaged.
        OSError: where a piece file is gone, or the disk does not take the set.
    """
    if not (out / PARTS_FOLDER).is_dir() and not (out / SET_MANIFEST).exists():
        raise ValueError(f"{out} holds no parts: run bytelm prepare --part first")
    with held_folder(out, f"merge of {out}"):
        made = not (out / SET_MANIFEST).exists()
        if made:
            _merge(out, console)
        shutil.rmtree(out / PARTS_FOLDER, ignore_errors=True)
    shutil.rmtree(_downloads(out), ignore_errors=True)
    shard_set = ShardSet(out)
    return Prepared(shard_set.root, shard_set.report, made)


def check_parts(staged: StagedInput, out: Path) -> None:
    """Raise ValueError where work items are not decoded; it names their parts."""
    folder = out / PARTS_FOLDER
    causes = []
    for part in range(staged.parts):
        items = items_of_part(staged.items, part, staged.parts)
        done = sum(summary_path(folder, item.number).exists() for item in items)
        name = f"part {part}/{staged.parts}"
        if items and not done:
            causes.append(f"{name} has not run")
        elif done < len(items):
            causes.append(f"{name} has decoded {done} of its {len(items)} work items")
    if causes:
        more = f", and {len(causes) - 5} more are missing" if len(causes) > 5 else ""
        raise ValueError(f"{', '.join(causes[:5])}{more}: run them, then bytelm merge {out}")


def finish_set(
    listed: PrepareInput,
    max_bad_share: float,
    counts: ItemCounts,
    shards: Sequence[Shard],
    out: Path,
) -> dict[str, Any]:
    """Write the list of skipped files and the manifest of a set whose shards are written.

    Returns:
        the manifest's report.
    Raises:
        ValueError: where too much is lost, or there is no document.
    """
    skipped = sorted(listed.found.skipped + counts.skipped)
    report = finish_report(listed, shards, skipped, counts.tally, counts.rows, max_bad_share)
    write_skipped(out, skipped)
    write_set_manifest(out, shards, report)
    return report


def _decode_items(
    missing: Sequence[WorkItem],
    items: Sequence[WorkItem],
    staged: StagedInput,
    options: PrepareOptions,
    folder: Path,
    console: Console | None,
) -> None:
    """Decode the items of a part that are missing."""
    total = sum(item.size for item in items)
    done = total - sum(item.size for item in missing)
    documents, units = staged.listed.found.documents, staged.listed.units
    own_documents = [d for i in missing if not i.is_table for d in documents[i.first : i.stop]]
    own_units = [u for i in missing if i.is_table for u in units[i.first : i.stop]]
    with (
        DecodePool(options.decode, options.workers) as pool,
        Progress(console, total, "bytes of files", done) as progress,
    ):
        for item, size in decode_items(
            missing, own_documents, own_units, options.shares, pool, folder
        ):
            progress.add(item.size, size)


def _merge(out: Path, console: Console | None) -> None:
    """Write shards and manifest, and remove members that no later shard needs."""
    folder = out / PARTS_FOLDER
    staged = load_staged_input(out)
    check_parts(staged, out)
    counts, planner = ItemCounts(staged.listed.units), ShardPlanner(staged.shard_bytes)
    recipes: list[ShardRecipe] = []
    for item in staged.items:
        summary = read_summary(folder, item.number)
        counts.add(summary)
        recipes += planner.add(item.number, summary)
    recipes += planner.finish()
    check_losses(*_losses(staged, counts), staged.max_bad_share)  # before the shards are written
    shards = _merged_shards(out)
    last_uses = _last_uses(recipes)
    total = sum(recipe.size for recipe in recipes)
    done = sum(recipe.size for recipe in recipes[: len(shards)])
    with Progress(console, total, done=done) as progress:
        for number, recipe in enumerate(recipes):
            if number == len(shards):
                shards.append(write_shard(recipe, folder, out))
                _save_merged(out, shards)
                progress.add(recipe.size)
            for unneeded in last_uses.get(number, ()):
                members_path(folder, unneeded).unlink(missing_ok=True)
    finish_set(staged.listed, staged.max_bad_share, counts, shards, out)


def _losses(staged: StagedInput, counts: ItemCounts) -> tuple[Losses, list[SkippedFile]]:
    """Losses of the sources, and everything that was skipped, sorted."""
    found = staged.listed.found
    skipped = sorted(found.skipped + counts.skipped)
    return count_losses(replace(found, files=found.files + counts.rows), skipped), skipped


def _last_uses(recipes: Sequence[ShardRecipe]) -> dict[int, list[int]]:
    """For the number of a shard among all, the items that no later shard needs."""
    last = {item: n for n, recipe in enumerate(recipes) for item in recipe.items}
    items: dict[int, list[int]] = {}
    for item, number in last.items():
        items.setdefault(number, []).append(item)
    return items


def _merged_shards(out: Path) -> list[Shard]:
    """The shards that an interrupted merge has written, which must be whole."""
    path = out / PARTS_FOLDER / MERGED
    if not path.exists():
        return []
    shards = [Shard(**values) for values in json.loads(path.read_bytes())]
    for shard in shards:
        if not is_whole(out, shard):
            raise ValueError(
                f"{out / shard.name} was changed since it was merged: delete {out} and run the "
                "parts again"
            )
    return shards


def _save_merged(out: Path, shards: Sequence[Shard]) -> None:
    data = json.dumps([asdict(shard) for shard in shards]).encode()
    write_atomic(out / PARTS_FOLDER / MERGED, data)


def _downloads(out: Path) -> Path:
    """The folder of sources at URLs, beside the set."""
    return out.with_name(f"{out.name}.sources")
