"""`bytelm prepare --part i/n`: one share of the decoding of a set that is made by an array of jobs.

The parts run at any time, in any order, on any machines that see one filesystem. The first one
lists the sources. Each decodes every n-th work item to a piece file. `merge.py` makes the set of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.pipelines.prepare.container_reader import ContainerReader
from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.download import download_sources, downloads_folder
from bytelm.pipelines.prepare.piece_files import decode_items, summary_path
from bytelm.pipelines.prepare.prepare import (
    PrepareInput,
    PrepareOptions,
    check_input,
    complete_set,
    list_input,
)
from bytelm.pipelines.prepare.set_folder import (
    PARTS_FOLDER,
    held_folder,
    open_parts_folder,
)
from bytelm.pipelines.prepare.staged_input import StagedInput, stage_input
from bytelm.pipelines.prepare.work_items import WorkItem, check_seen, items_of_part, paths_of
from bytelm.pipelines.runtime.progress import Progress
from bytelm.pipelines.shards.format import SET_MANIFEST

if TYPE_CHECKING:
    from rich.console import Console


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
            another number of parts, this part runs already, or this machine does not see the
            sources.
        RuntimeError: where decoding processes do not start.
        OSError: where the disk does not take the pieces.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part {part}/{parts} is none: the parts are 0 to {parts - 1}")
    if (out / SET_MANIFEST).exists():
        complete_set(out, _list_sources(sources, out, options))
        return PreparedPart(0, 0, made=False)

    def list_usable() -> PrepareInput:
        listed = _list_sources(sources, out, options)
        check_input(listed, options)
        return listed

    open_parts_folder(out)
    staged = stage_input(out, sources, options, parts, list_usable, console)
    folder = out / PARTS_FOLDER
    items = items_of_part(staged.items, part, parts)
    with held_folder(folder / f"part-{part}.lock", f"part {part}/{parts} of {out}"):
        missing = [item for item in items if not summary_path(folder, item.number).exists()]
        if missing:
            _decode_items(missing, items, staged, options, folder, console)
    return PreparedPart(len(items), sum(item.size for item in items), made=bool(missing))


def _list_sources(
    sources: Sequence[str | Path], out: Path, options: PrepareOptions
) -> PrepareInput:
    """List the sources under paths that hold in any working directory."""
    reader = ContainerReader()
    local = download_sources(sources, downloads_folder(out), reader)
    local = [source._replace(path=source.path.absolute()) for source in local]
    return list_input(local, out, options, reader)


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
    check_seen(paths_of([*own_documents, *own_units]), "this machine")
    with (
        DecodePool(options.decode, options.workers) as pool,
        Progress(console, total, "bytes of files", done) as progress,
    ):
        for item, size in decode_items(
            missing, own_documents, own_units, options.shares, pool, folder, is_durable=True
        ):
            progress.add(item.size, size)
