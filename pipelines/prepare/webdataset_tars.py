"""Foreign WebDataset tars: which of their members make documents.

The convention is webdataset's: the key is a member's name up to the first dot of its base name,
and the members of one key are one sample. What webdataset drops or joins without a word (names
without a suffix, keys with a dot) is skipped here by name. A member's name is a label and never a
path; its kind shows in its suffix.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bytelm.pipelines.shards.format import SET_MANIFEST
from bytelm.pipelines.storage.tar_reader import (
    COMPRESSED_SUFFIXES,
    TarFlaw,
    TarMember,
    read_members,
)

SUFFIXES = {
    "txt": "text",
    **dict.fromkeys(("png", "jpg", "jpeg", "webp", "gif", "bmp"), "image"),
    **dict.fromkeys(("wav", "flac", "ogg", "mp3"), "audio"),
}
"""Modality by suffix, in lower case."""
CAPTION_SUFFIX = "json"
CAPTION_FIELDS = ("caption", "text")
MAX_JSON_BYTES = 1 << 20
METADATA = "metadata"
"""What a JSON member is counted under that gives no caption; it is nothing bad."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class TarFile:
    """A member that becomes a part of a document."""

    name: str
    key: str
    modality: str
    offset: int
    size: int
    caption: str | None = None
    """From the JSON member of the same key."""


def expand_braces(pattern: str) -> list[str]:
    """The names of a pattern as `{000..012}` or `{a,b}`, as shells and webdataset expand it."""
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
    before, after = pattern[: braces.start()], expand_braces(pattern[braces.end() :])
    return [before + choice + rest for choice in choices for rest in after]


def is_tar(name: str) -> bool:
    """Whether a file's name says that it is a tar, compressed or not."""
    return name.lower().endswith((".tar", *COMPRESSED_SUFFIXES))


def read_shard(path: str, max_member_bytes: int) -> tuple[list[TarFile], list[TarFlaw]]:
    """The members of a tar that become parts of documents, and what is skipped and why."""
    if path.lower().endswith(COMPRESSED_SUFFIXES):
        return [], [TarFlaw("", "compressed tar", "decompress it first")]
    if Path(path).with_suffix(".npy").exists() and Path(path).with_name(SET_MANIFEST).exists():
        detail = "a shard of a set that is prepared already; use the set as it is"
        return [], [TarFlaw("", "bytelm shard", detail)]
    files: list[TarFile] = []
    flaws: list[TarFlaw] = []
    descriptions: list[tuple[str, TarMember]] = []
    try:
        for member in read_members(path):
            if isinstance(member, TarFlaw):
                flaws.append(member)
                continue
            part = _part(member, max_member_bytes)
            if isinstance(part, TarFlaw):
                flaws.append(part)
            elif isinstance(part, TarFile):
                files.append(part)
            else:
                descriptions.append((part, member))
        captions = _captions(path, descriptions, files, flaws)
    except OSError as error:
        flaws.append(TarFlaw("", "unreadable", error.strerror or "cannot be read"))
        captions = {}
    return [replace(f, caption=captions.get(f.name)) for f in files], flaws


def _part(member: TarMember, max_member_bytes: int) -> TarFile | TarFlaw | str:
    """A member as a part of a document; the key of one that describes others."""
    folder, _, base = member.name.rpartition("/")
    stem, _, suffix = base.partition(".")
    suffix = suffix.lower()
    last = suffix.rpartition(".")[2]
    if not (stem and suffix):
        return TarFlaw(
            member.name, "no suffix", "its name has no key, or no suffix that says a kind"
        )
    if suffix not in SUFFIXES and suffix != CAPTION_SUFFIX:
        if last != suffix and (last in SUFFIXES or last == CAPTION_SUFFIX):
            return TarFlaw(member.name, "dot in the key", f"a key ends at the first dot: {stem}")
        return TarFlaw(member.name, "unknown kind", f"a member with the suffix {suffix[:40]}")
    if member.size == 0:
        return TarFlaw(member.name, "empty", "a member of 0 bytes")
    if member.size > (MAX_JSON_BYTES if suffix == CAPTION_SUFFIX else max_member_bytes):
        return TarFlaw(member.name, "over the limit", f"a member of {member.size} bytes")
    key = f"{folder}/{stem}" if folder else stem
    if suffix == CAPTION_SUFFIX:
        return key
    return TarFile(member.name, key, SUFFIXES[suffix], member.offset, member.size)


def _captions(
    path: str,
    descriptions: Sequence[tuple[str, TarMember]],
    files: Sequence[TarFile],
    flaws: list[TarFlaw],
) -> dict[str, str]:
    """By a member's name, the caption that the JSON of its key holds."""
    by_key: dict[str, list[TarFile]] = {}
    for file in files:
        by_key.setdefault(file.key, []).append(file)
    captions: dict[str, str] = {}
    with open(path, "rb", buffering=0) as tar:
        for key, member in descriptions:
            caption = _caption(os.pread(tar.fileno(), member.size, member.offset))
            beside = by_key.get(key, [])
            if caption is None:
                flaws.append(TarFlaw(member.name, METADATA, "no caption or text in it"))
            elif not beside:
                flaws.append(TarFlaw(member.name, METADATA, "a caption of no file in the tar"))
            elif any(f.modality == "text" for f in beside):
                flaws.append(
                    TarFlaw(member.name, METADATA, "a text of the same key is used instead")
                )
            else:
                captions[beside[0].name] = caption
    return captions


def _caption(data: bytes) -> str | None:
    """The first caption field of a JSON object that holds some text."""
    try:
        described = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(described, dict):
        return None
    texts = (described.get(field) for field in CAPTION_FIELDS)
    return next((t for t in texts if isinstance(t, str) and t and is_unicode(t)), None)


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded; JSON can hold halves of surrogate pairs."""
    return not any("\ud800" <= c <= "\udfff" for c in text)
