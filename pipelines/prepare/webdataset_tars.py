"""WebDataset tars of other programs: which of their members make documents.

The convention is webdataset's: the key is a member's name up to the first dot of its base name,
and the members of one key are one sample. webdataset drops names without a suffix and joins keys
with a dot, both silently; here they are skipped by name. A member's name is a label and never a
path; its suffix tells its kind.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bytelm.pipelines.prepare.captions import is_unicode
from bytelm.pipelines.prepare.documents import METADATA
from bytelm.pipelines.shards.format import SET_MANIFEST
from bytelm.pipelines.storage.tar_reader import (
    COMPRESSED_SUFFIXES,
    TarFlaw,
    TarMember,
    read_members,
)

MODALITY_BY_SUFFIX = {
    "txt": "text",
    **dict.fromkeys(("png", "jpg", "jpeg", "webp", "gif", "bmp"), "image"),
    **dict.fromkeys(("wav", "flac", "ogg", "mp3"), "audio"),
}
CAPTION_SUFFIX = "json"
CAPTION_FIELDS = ("caption", "text")
MAX_JSON_BYTES = 1 << 20

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class MemberFile:
    """A member that becomes a part of a document."""

    name: str
    key: str
    modality: str
    offset: int
    """Position of its first byte in the tar."""
    size: int
    caption: str | None = None
    """From the JSON member of the same key."""


def expand_braces(pattern: str) -> list[str]:
    """The names of a pattern with `{000..012}` or `{a,b}`, as shells and webdataset expand it."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    numbers = _RANGE.fullmatch(braces[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        step = 1 if last >= first else -1
        choices = [f"{n:0{len(numbers[1])}}" for n in range(first, last + step, step)]
    else:
        choices = braces[1].split(",")
    prefix, suffixes = pattern[: braces.start()], expand_braces(pattern[braces.end() :])
    return [prefix + choice + suffix for choice in choices for suffix in suffixes]


def is_tar(name: str) -> bool:
    """Whether a file's name says that it is a tar, compressed or not."""
    return name.lower().endswith((".tar", *COMPRESSED_SUFFIXES))


def read_webdataset_tar(path: str, max_member_bytes: int) -> tuple[list[MemberFile], list[TarFlaw]]:
    """The members of a tar that become parts of documents, and what is skipped with its reason."""
    if path.lower().endswith(COMPRESSED_SUFFIXES):
        return [], [TarFlaw("", "compressed tar", "decompress it first")]
    if Path(path).with_suffix(".npy").exists() and Path(path).with_name(SET_MANIFEST).exists():
        detail = "a shard of a set that is prepared already; use the set as it is"
        return [], [TarFlaw("", "bytelm shard", detail)]
    files: list[MemberFile] = []
    flaws: list[TarFlaw] = []
    descriptions: list[tuple[str, TarMember]] = []  # a key and its JSON member
    captions: dict[str, str] = {}
    try:
        for member in read_members(path):
            match _classify(member, max_member_bytes):
                case TarFlaw() as flaw:
                    flaws.append(flaw)
                case MemberFile() as file:
                    files.append(file)
                case key, description:
                    descriptions.append((key, description))
        captions = _captions(path, descriptions, files, flaws)
    except OSError as error:
        flaws.append(TarFlaw("", "unreadable", error.strerror or "cannot be read"))
    return [replace(f, caption=captions.get(f.name)) for f in files], flaws


def _classify(
    member: TarMember | TarFlaw, max_member_bytes: int
) -> MemberFile | TarFlaw | tuple[str, TarMember]:
    """A member as a part of a document, or as a flaw, or with its key where it is a JSON that
    describes the other members of that key."""
    if isinstance(member, TarFlaw):
        return member
    folder, _, base = member.name.rpartition("/")
    stem, _, suffix = base.partition(".")
    suffix = suffix.lower()
    if not (stem and suffix):
        detail = "its name has no key, or no suffix that tells its kind"
        return TarFlaw(member.name, "no suffix", detail)
    if not _is_known(suffix):
        if "." in suffix and _is_known(suffix.rpartition(".")[2]):
            return TarFlaw(member.name, "dot in the key", f"a key ends at the first dot: {stem}")
        return TarFlaw(member.name, "unknown kind", f"a member with the suffix {suffix[:40]}")
    is_description = suffix == CAPTION_SUFFIX
    if member.size == 0:
        return TarFlaw(member.name, "empty", "a member of 0 bytes")
    if member.size > (MAX_JSON_BYTES if is_description else max_member_bytes):
        return TarFlaw(member.name, "over the limit", f"a member of {member.size} bytes")
    key = f"{folder}/{stem}" if folder else stem
    if is_description:
        return key, member
    return MemberFile(member.name, key, MODALITY_BY_SUFFIX[suffix], member.offset, member.size)


def _is_known(suffix: str) -> bool:
    return suffix in MODALITY_BY_SUFFIX or suffix == CAPTION_SUFFIX


def _captions(
    path: str,
    descriptions: Sequence[tuple[str, TarMember]],
    files: Sequence[MemberFile],
    flaws: list[TarFlaw],
) -> dict[str, str]:
    """Captions by the name of the member that they describe: the first one of their key. A JSON
    that gives none is added to `flaws`."""
    files_by_key: dict[str, list[MemberFile]] = {}
    for file in files:
        files_by_key.setdefault(file.key, []).append(file)
    captions: dict[str, str] = {}
    with open(path, "rb", buffering=0) as tar:
        for key, member in descriptions:
            caption = _caption(os.pread(tar.fileno(), member.size, member.offset))
            described = files_by_key.get(key, [])
            if caption is None:
                flaws.append(TarFlaw(member.name, METADATA, "no caption or text in it"))
            elif not described:
                flaws.append(TarFlaw(member.name, METADATA, "a caption of no file in the tar"))
            elif any(f.modality == "text" for f in described):
                detail = "a text of the same key is used instead"
                flaws.append(TarFlaw(member.name, METADATA, detail))
            else:
                captions[described[0].name] = caption
    return captions


def _caption(data: bytes) -> str | None:
    """The text of the first caption field of a JSON object that has one; None without any."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    texts = (values.get(field) for field in CAPTION_FIELDS)
    return next((t for t in texts if isinstance(t, str) and t and is_unicode(t)), None)
