"""The listed input of a set that is prepared in parts, in the folder of its piece files.

SET/.parts/input.json    written by the first part; every later one must have the same input
SET/.parts/item-*        piece files
SET/.parts/part-I.lock   held while part I runs
SET/.parts/merged.json   the shards that `merge` has written
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bytelm.pipelines.prepare.documents import DocumentPart, SkippedFile, SourceDocument
from bytelm.pipelines.prepare.prepare import PrepareInput, PrepareOptions
from bytelm.pipelines.prepare.set_folder import PARTS_FOLDER
from bytelm.pipelines.prepare.sources import FoundDocuments
from bytelm.pipelines.prepare.tables import TableFields, TableFormat, TableUnit
from bytelm.pipelines.prepare.work_items import WorkItem, work_items
from bytelm.pipelines.storage.files import fsync_folder

STAGED_INPUT = "input.json"


@dataclass(frozen=True)
class StagedInput:
    """Input and options on which all parts of a set agree, and which merging them needs."""

    listed: PrepareInput
    parts: int
    """How many parts there are."""
    shard_bytes: int
    max_bad_share: float

    @property
    def items(self) -> list[WorkItem]:
        """All work items."""
        return work_items(self.listed.found.documents, self.listed.units)


def stage_input(
    out: Path, listed: PrepareInput, options: PrepareOptions, parts: int
) -> StagedInput:
    """Store the input of the set in `out`, or compare it with what another part has stored.

    Raises ValueError where another part has another input, other options or another number of
    parts.
    """
    staged = StagedInput(listed, parts, options.shard_bytes, options.max_bad_share)
    folder = out / PARTS_FOLDER
    path = folder / STAGED_INPUT
    if not path.exists():
        temporary = path.with_name(f"{STAGED_INPUT}.{os.uname().nodename}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(_to_json(staged))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another part was faster
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(folder)
    first = load_staged_input(out)
    if first.parts != parts:
        cause = f"in {first.parts} parts, not {parts}"
    elif first.listed.fingerprint != listed.fingerprint:
        cause = "of other files or options"
    elif first.max_bad_share != options.max_bad_share:
        cause = f"with --max-bad-share {first.max_bad_share}"
    else:
        return staged
    raise ValueError(
        f"{out} was begun {cause}: run all parts alike, choose another --out, or delete it"
    )


def load_staged_input(out: Path) -> StagedInput:
    """The input of a set in parts; ValueError where there is none or another version stored it."""
    path = out / PARTS_FOLDER / STAGED_INPUT
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{out} holds no parts: run bytelm prepare --part first") from error
    own_version = version("bytelm")
    if values["version"] != own_version:
        raise ValueError(
            f"the parts in {out} were made by bytelm {values['version']}, and this is "
            f"{own_version}: use one version for all"
        )
    listed = PrepareInput(
        _found(values["found"]),
        [_unit(unit) for unit in values["units"]],
        values["input_hash"],
        values["fingerprint"],
    )
    return StagedInput(listed, values["parts"], values["shard_bytes"], values["max_bad_share"])


def _to_json(staged: StagedInput) -> bytes:
    listed = staged.listed
    found = asdict(replace(listed.found, documents=[], tables=[], caption_columns=frozenset()))
    content = {
        "version": version("bytelm"),
        "parts": staged.parts,
        "shard_bytes": staged.shard_bytes,
        "max_bad_share": staged.max_bad_share,
        "input_hash": listed.input_hash,
        "fingerprint": listed.fingerprint,
        "found": {**found, "documents": listed.found.documents, "caption_columns": []},
        "units": listed.units,
    }
    return json.dumps(content).encode()


def _found(values: dict[str, Any]) -> FoundDocuments:
    documents = [
        SourceDocument(key, split, tuple(DocumentPart(*part) for part in parts))
        for key, split, parts in values["documents"]
    ]
    skipped = [SkippedFile(**entry) for entry in values["skipped"]]
    notes = [(name, note) for name, note in values["notes"]]
    changed = {"documents": documents, "skipped": skipped, "notes": notes}
    return FoundDocuments(**{**values, **changed, "caption_columns": frozenset()})


def _unit(values: list[Any]) -> TableUnit:
    unit = TableUnit(*values)
    return unit._replace(
        format=TableFormat(*unit.format),
        fields=TableFields(*unit.fields),
        moved=tuple((row, split) for row, split in unit.moved),
    )
