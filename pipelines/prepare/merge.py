"""`bytelm merge`: the set of parts that are decoded, written by one process or by several.

`merge_share` writes one of N shares of the shards, on any machine, at the same time as others.
`merge_parts` writes the shards that are missing then, all of them if there were no shares, and the
manifest. Piece files are removed as soon as no later shard needs them.

    SET/.parts/merged*.jsonl    the shards that a share or `merge_parts` has written, a line each
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bytelm.pipelines.prepare.assembly import ItemCounts, ShardPlanner, ShardRecipe, write_shard
from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.download import downloads_folder
from bytelm.pipelines.prepare.losses import Losses, check_losses, count_losses
from bytelm.pipelines.prepare.piece_files import members_path, read_summary, summary_path
from bytelm.pipelines.prepare.prepare import Prepared, PrepareInput, finish_report
from bytelm.pipelines.prepare.report import write_skipped
from bytelm.pipelines.prepare.set_folder import PARTS_FOLDER, held_folder, is_whole
from bytelm.pipelines.prepare.staged_input import StagedInput, load_staged_input
from bytelm.pipelines.prepare.work_items import items_of_part
from bytelm.pipelines.runtime.progress import Progress
from bytelm.pipelines.shards.format import SET_MANIFEST, Shard
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import write_set_manifest

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class MergedShare:
    """A share of the shards of a set that is written."""

    shards: int
    size: int
    """Bytes of their members."""
    made: bool
    """False where all of them were written before."""


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
    _check_begun(out)
    with held_folder(out, f"merge of {out}"):
        made = not (out / SET_MANIFEST).exists()
        if made:
            merge = _Merge(out)
            shards = merge.write_shards(range(len(merge.recipes)), "merged.jsonl", console)
            for unfinished in out.glob("*.tmp"):  # of merges that were killed
                unfinished.unlink()
            finish_set(merge.staged.listed, merge.staged.max_bad_share, merge.counts, shards, out)
        shutil.rmtree(out / PARTS_FOLDER, ignore_errors=True)
    shutil.rmtree(downloads_folder(out), ignore_errors=True)
    shard_set = ShardSet(out)
    return Prepared(shard_set.root, shard_set.report, made)


def merge_share(out: Path, share: int, shares: int, console: Console | None = None) -> MergedShare:
    """Write one of several shares of the shards, once all parts are decoded; `merge_parts` then
    makes the set of them. An interrupted call is resumed.

    Args:
        out: the set's folder.
        share: number of the share, from 0.
        shares: how many there are, which is how many parts were decoded.
        console: shows the progress; None shows nothing.
    Raises:
        ValueError: see `merge_parts`; and for another number of shares, and where this share is
            being written already.
        OSError: see `merge_parts`.
    """
    _check_begun(out)
    if (out / SET_MANIFEST).exists():
        return MergedShare(0, 0, made=False)
    folder = out / PARTS_FOLDER
    name = f"share {share}/{shares} of {out}"
    with (
        held_folder(out, f"merge of {out}", is_shared=True),
        held_folder(folder / f"merge-{share}.lock", f"merge of {name}"),
    ):
        merge = _Merge(out)
        if shares != merge.staged.parts or not 0 <= share < shares:
            raise ValueError(
                f"{out} was decoded in {merge.staged.parts} parts, and has as many shares: "
                f"{share}/{shares} is none of them"
            )
        count = len(merge.recipes)
        numbers = range(count * share // shares, count * (share + 1) // shares)
        before = len(merge.written)
        merge.write_shards(numbers, f"merged-{share}.jsonl", console)
        made = len(merge.written) > before
        size = sum(merge.recipes[number].size for number in numbers)
    return MergedShare(len(numbers), size, made)


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


def check_parts(staged: StagedInput, out: Path) -> None:
    """Raise ValueError where work items are not decoded; it names their parts."""
    folder = out / PARTS_FOLDER
    names = set(os.listdir(folder))
    all_items = staged.items
    causes = []
    for part in range(staged.parts):
        items = items_of_part(all_items, part, staged.parts)
        done = sum(summary_path(folder, item.number).name in names for item in items)
        name = f"part {part}/{staged.parts}"
        if items and not done:
            causes.append(f"{name} has not run")
        elif done < len(items):
            causes.append(f"{name} has decoded {done} of its {len(items)} work items")
    if causes:
        more = f", and {len(causes) - 5} more are missing" if len(causes) > 5 else ""
        raise ValueError(f"{', '.join(causes[:5])}{more}: run them, then bytelm merge {out}")


class _Merge:
    """The shards of a set whose parts are decoded: how they are made, and which are written.

    Raises ValueError where a part is missing, or too much of the sources is lost.
    """

    def __init__(self, out: Path):
        self._out = out
        self._folder = out / PARTS_FOLDER
        self.staged = load_staged_input(out)
        check_parts(self.staged, out)
        self.counts = ItemCounts(self.staged.listed.units)
        self.recipes: list[ShardRecipe] = []
        planner = ShardPlanner(self.staged.shard_bytes)
        for item in self.staged.items:
            summary = read_summary(self._folder, item.number)
            self.counts.add(summary)
            self.recipes += planner.add(item.number, summary)
        self.recipes += planner.finish()
        check_losses(*self._losses(), self.staged.max_bad_share)  # before a shard is written
        self.written = {shard.name: shard for shard in self._read_journals()}
        """Shards by name."""

    def write_shards(self, numbers: range, journal: str, console: Console | None) -> list[Shard]:
        """Write consecutive shards, those of them that are missing, and return all of them.

        Args:
            numbers: their places among all shards.
            journal: name of the file that records them; no other process writes it.
            console: shows the progress; None shows nothing.
        Raises:
            ValueError: where a shard was changed since it was written.
            OSError: where a piece file is gone, or the disk does not take a shard.
        """
        recipes = [self.recipes[number] for number in numbers]
        unneeded = self._last_uses(numbers)
        total = sum(recipe.size for recipe in recipes)
        done = sum(recipe.size for recipe in recipes if recipe.name in self.written)
        with (
            _open_journal(self._folder / journal) as file,
            Progress(console, total, done=done) as p,
        ):
            for number, recipe in zip(numbers, recipes, strict=True):
                if recipe.name in self.written:
                    self._check_whole(self.written[recipe.name])
                else:
                    shard = write_shard(recipe, self._folder, self._out)
                    _append(file, shard)
                    self.written[recipe.name] = shard
                    p.add(recipe.size)
                for item in unneeded.get(number, ()):
                    members_path(self._folder, item).unlink(missing_ok=True)
        return [self.written[recipe.name] for recipe in recipes]

    def _last_uses(self, numbers: range) -> dict[int, list[int]]:
        """By the place of a shard: the items that no shard behind it needs, nor one before
        `numbers`, which another process may be writing."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for number, recipe in enumerate(self.recipes):
            for item in recipe.items:
                first.setdefault(item, number)
                last[item] = number
        items: dict[int, list[int]] = {}
        for item, number in last.items():
            if first[item] >= numbers.start and number in numbers:
                items.setdefault(number, []).append(item)
        return items

    def _losses(self) -> tuple[Losses, list[SkippedFile]]:
        """Losses of the sources, and everything that was skipped, sorted."""
        found = self.staged.listed.found
        skipped = sorted(found.skipped + self.counts.skipped)
        return count_losses(replace(found, files=found.files + self.counts.rows), skipped), skipped

    def _read_journals(self) -> Iterator[Shard]:
        """The shards that are written. The last line of a process that was killed may be cut off:
        its shard is written again."""
        for path in sorted(self._folder.glob("merged*.jsonl")):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    yield Shard(**json.loads(line))

    def _check_whole(self, shard: Shard) -> None:
        if not is_whole(self._out, shard):
            raise ValueError(
                f"{self._out / shard.name} was changed since it was merged: delete {self._out} and "
                "run the parts again"
            )


@contextmanager
def _open_journal(path: Path) -> Iterator[TextIO]:
    """A file of lines to append to, without the part of a line that a killed process left."""
    with open(path, "a+") as file:
        file.seek(0)
        text = file.read()
        file.truncate(len(text[: text.rfind("\n") + 1].encode()))
        yield file


def _append(file: TextIO, shard: Shard) -> None:
    """Record a shard that is final, durably."""
    file.write(json.dumps(asdict(shard)) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _check_begun(out: Path) -> None:
    """Raise ValueError where a folder holds neither parts nor a set."""
    if not (out / PARTS_FOLDER).is_dir() and not (out / SET_MANIFEST).exists():
        raise ValueError(f"{out} holds no parts: run bytelm prepare --part first")
