"""`bytelm index`: make the indexes and the manifest of a set again, from its tars alone.

This is for a set whose index or manifest was lost or damaged. It needs tars that `bytelm prepare`
wrote; the root hash shows whether a tar is the one that was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from tarfile import RECORDSIZE
from typing import Any, BinaryIO

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.runtime.progress import tracked
from bytelm.pipelines.shards.format import SPLITS, Shard
from bytelm.pipelines.shards.writer import IndexBuilder, write_set_manifest
from bytelm.pipelines.storage.tar_reader import TarFlaw, TarMember, read_members

_TAR_NAME = re.compile(r"(train|val|test)-(\d{6})\.tar")


def reindex(folder: Path) -> str:
    """Write every index and the manifest of a set anew, and return the root hash.

    Raises ValueError where the folder holds no shards, DamageError where a tar is cut off or holds
    anything but documents of bytelm.
    """
    names = [p.name for p in folder.glob("*.tar") if _TAR_NAME.fullmatch(p.name)]
    if not names:
        raise ValueError(f"{folder} holds no shards (train-000000.tar and so on)")
    names.sort(key=lambda name: (SPLITS.index(name.split("-")[0]), name))
    shards = [_reindex_shard(folder / name) for name in tracked(names, len(names), "shards")]
    return write_set_manifest(folder, shards, {"index": "made again from the tars"})


def _reindex_shard(path: Path) -> Shard:
    with open(path, "rb") as file:
        try:
            builder = _build_index(path, file)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return builder.finish(path, sha256, path.stat().st_size)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise DamageError(f"{path} is damaged or no shard of bytelm: {error}") from error


def _build_index(path: Path, file: BinaryIO) -> IndexBuilder:
    """The index of an open tar: each document is a description, and then its segments."""
    builder = IndexBuilder()
    members = _members(path)
    for description in members:
        for segment in _segments(file, description):
            member = next(members, None)
            if member is None or member.name != segment["member"]:
                raise DamageError(f"{segment['member']} does not follow its json")
            builder.add_segment(_sample(file, member, segment), member.offset)
        builder.end_document()
    return builder


def _members(path: Path) -> Iterator[TarMember]:
    """The members of a tar; DamageError where it holds anything else or is cut off."""
    size = path.stat().st_size
    if size % RECORDSIZE:
        raise DamageError(f"{size} bytes are no multiple of {RECORDSIZE}: it is cut off")
    for member in read_members(str(path)):
        if isinstance(member, TarFlaw):
            raise DamageError(f"{member.name}: {member.detail}" if member.name else member.detail)
        if member.copy:
            raise DamageError(f"{member.name} is in it twice")
        yield member


def _segments(file: BinaryIO, description: TarMember) -> list[dict[str, Any]]:
    """The segments that a document's JSON describes, in the order of their members."""
    if not description.name.endswith(".json"):
        raise DamageError(f"{description.name} where a document's json should be")
    return json.loads(_data(file, description))["segments"]


def _sample(file: BinaryIO, member: TarMember, segment: dict[str, Any]) -> Sample:
    fields = ("width", "height", "channels", "rate")
    return Sample(
        modality=MODALITIES[segment["modality"]].name,
        header=Header(**{name: segment[name] for name in fields if name in segment}),
        data=_data(file, member),
        is_file=segment.get("is_file", False),
        is_deep=segment.get("is_deep", False),
    )


def _data(file: BinaryIO, member: TarMember) -> bytes:
    return os.pread(file.fileno(), member.size, member.offset)
