"""`bytelm index`: the indexes and the manifest of a set, made again from its tars alone.

For a set whose index or manifest was lost or damaged. Only tars that `bytelm prepare` wrote have
what is needed; whether a tar is the one that was written shows in the root hash.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.shards import SPLITS, DamageError, Shard
from bytelm.pipelines.shardwriter import IndexBuilder, write_manifest

PLAIN_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_TAR_NAME = re.compile(r"(train|val|test)-(\d{6})\.tar")


def reindex(folder: Path) -> str:
    """Write every index and the manifest of a set anew; returns the root hash.

    Raises ValueError where the folder holds no shards, DamageError where a tar is cut off or
    holds something else than documents of bytelm.
    """
    names = [p.name for p in folder.glob("*.tar") if _TAR_NAME.fullmatch(p.name)]
    if not names:
        raise ValueError(f"{folder} holds no shards (train-000000.tar and so on)")
    names.sort(key=lambda name: (SPLITS.index(name.split("-")[0]), name))
    shards = [_reindex_shard(folder / name) for name in names]
    return write_manifest(folder, shards, {"index": "made again from the tars"})


def _reindex_shard(path: Path) -> Shard:
    builder = IndexBuilder()
    try:
        with tarfile.open(path, "r:") as tar:
            members = iter(tar)
            for description in members:
                for segment in _segments(tar, description):
                    member = next(members, None)
                    if member is None or member.name != segment["member"]:
                        raise DamageError(f"{path}: {segment['member']} does not follow its json")
                    builder.add_segment(_sample(tar, member, segment), member.offset_data)
                builder.end_document()
    except (tarfile.TarError, EOFError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DamageError(f"{path} is damaged or no shard of bytelm: {error}") from error
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return builder.finish(path, sha256, path.stat().st_size)


def _segments(tar: tarfile.TarFile, member: tarfile.TarInfo) -> list[dict[str, Any]]:
    if member.type not in PLAIN_TYPES or not member.name.endswith(".json"):
        raise DamageError(f"{tar.name!r}: {member.name} where a document's json should be")
    return json.loads(_data(tar, member))["segments"]


def _sample(tar: tarfile.TarFile, member: tarfile.TarInfo, segment: dict[str, Any]) -> Sample:
    fields = ("width", "height", "channels", "rate")
    return Sample(
        modality=MODALITIES[segment["modality"]].name,
        header=Header(**{name: segment[name] for name in fields if name in segment}),
        data=_data(tar, member),
        is_file=segment.get("is_file", False),
    )


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.type in PLAIN_TYPES else None
    data = file.read() if file else b""
    if file is None or len(data) != member.size:
        raise DamageError(f"{tar.name!r}: {member.name} is cut off or no file")
    return data
