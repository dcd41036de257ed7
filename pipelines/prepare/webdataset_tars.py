"""WebDataset tars of other programs: which of their members make documents.

A member is a file like any other: its content tells its modality, and the members of one key are
one sample. The key is the member's name without its last suffix, as in a folder. (webdataset ends
the key at the first dot, which joins `v1.0.jpg` with `v1.1.txt`.) Of several members of one name
the second ones belong together, and so on. A member's name is a label and never a path.

A JSON member describes the other members of its key: it holds their caption or is metadata. A JSON
that describes no member is a text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from bytelm.modalities.base import MediaError
from bytelm.modalities.detect import (
    START_BYTES,
    claimed_modality,
    detect_modality,
    refuse_pointer,
)
from bytelm.pipelines.prepare.captions import SIDECAR_SUFFIXES, caption_of_json
from bytelm.pipelines.prepare.documents import METADATA, SAME_FILE
from bytelm.pipelines.shards.format import SET_MANIFEST
from bytelm.pipelines.storage.tar_reader import (
    COMPRESSED_SUFFIXES,
    JOINED_TARS,
    TarFlaw,
    TarMember,
    read_members,
)

CAPTION_SUFFIX = ".json"
MAX_JSON_BYTES = 1 << 20
HIDDEN_NOTE = "hidden members left out"
JOINED_NOTE = "several tars joined in one file"

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_HIDDEN = re.compile(r"(^|/)(\.(?!\.?(/|$))|__MACOSX/|PaxHeaders(\.\d+)?/)")
"""Names that tar programs add for a system (AppleDouble, pax headers) or a folder would hide."""


class MemberFile(NamedTuple):
    """A member that becomes a part of a document."""

    name: str
    key: str
    modality: str | None
    """None where the first bytes are yet to tell."""
    offset: int
    """Position of its first byte in the tar."""
    size: int
    caption: str | None = None
    """From the JSON member of the same key."""


@dataclass
class TarContents:
    """Content of a tar."""

    size: int = 0
    """Bytes of the tar."""
    members: int = 0
    """Members that could be read, without hidden ones."""
    parts: int = 1
    """Tars that were joined to this one, and itself."""
    files: list[MemberFile] = field(default_factory=list)
    flaws: list[TarFlaw] = field(default_factory=list)
    """Members that are skipped."""
    damage: TarFlaw | None = None
    """Flaws of the tar itself."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """Names of members, or an empty one for the tar itself, and what was noted about them."""


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


def read_webdataset_tar(path: str, max_member_bytes: int) -> TarContents:
    """The members of a tar that become parts of documents, and what is skipped with its reason."""
    contents = TarContents()
    try:
        contents.size = os.stat(path).st_size
        contents.damage = _refusal(path, contents.size)
        if contents.damage is None:
            _read(path, max_member_bytes, contents)
    except OSError as error:
        cause = error.strerror or "cannot be read"
        contents.damage = TarFlaw("", "unreadable", cause, contents.size)
    return contents


def _refusal(path: str, size: int) -> TarFlaw | None:
    """Why a tar is not read at all."""
    with open(path, "rb") as file:
        start = file.read(START_BYTES)
    try:
        refuse_pointer(start)
    except MediaError as error:
        return TarFlaw("", error.reason, error.detail, size)
    if path.lower().endswith(COMPRESSED_SUFFIXES):
        return TarFlaw("", "compressed tar", "decompress it first", size)
    if Path(path).with_suffix(".npy").exists() and Path(path).with_name(SET_MANIFEST).exists():
        detail = "a shard of a set that is prepared already; use the set as it is"
        return TarFlaw("", "bytelm shard", detail, size)
    return None


def _read(path: str, max_member_bytes: int, contents: TarContents) -> None:
    """Add what a tar holds to `contents`."""
    members: list[TarMember] = []
    links: list[TarFlaw] = []
    for member in read_members(path):
        if _HIDDEN.search(member.name):
            contents.notes.append((member.name, HIDDEN_NOTE))
        elif isinstance(member, TarMember):
            members.append(member)
        elif member.name:
            (links if member.target else contents.flaws).append(member)
        elif member.reason == JOINED_TARS:
            contents.parts = member.count
            contents.notes.append(("", JOINED_NOTE))
        else:
            contents.damage = member
    contents.members = len(members) + len(links) + len(contents.flaws)
    contents.flaws += _link_flaws(links, members)
    sound: list[TarMember] = []
    for member in members:
        flaw = _size_flaw(member, max_member_bytes)
        if flaw:
            contents.flaws.append(flaw)
        else:
            sound.append(member)
    with open(path, "rb", buffering=0) as tar:
        contents.files = _files(tar.fileno(), sound, contents.flaws)


def _link_flaws(links: Sequence[TarFlaw], members: Sequence[TarMember]) -> Iterable[TarFlaw]:
    """The flaws of links. One that leads to a member of the tar loses nothing."""
    if not links:
        return
    names = {os.path.normpath(member.name) for member in members}
    for link in links:
        if link.target in names:
            yield replace(link, reason=SAME_FILE, detail=f"a link to {link.target}")
        else:
            yield link


def _size_flaw(member: TarMember, max_bytes: int) -> TarFlaw | None:
    """Why a member's size makes it no document."""
    if member.size == 0:
        return TarFlaw(member.name, "empty", "a member of 0 bytes")
    if member.size > max_bytes:
        detail = f"a member of {member.size} bytes"
        return TarFlaw(member.name, "over the limit", detail, member.size)
    return None


def _files(tar: int, members: Sequence[TarMember], flaws: list[TarFlaw]) -> list[MemberFile]:
    """The members that become parts of documents, in the tar's order. A JSON that describes others
    and gives no caption is added to `flaws`."""
    by_key: dict[str, list[TarMember]] = {}
    for member in members:
        by_key.setdefault(_key(member), []).append(member)
    files: list[MemberFile] = []
    for key, group in by_key.items():
        is_alone = len(group) == 1
        described = [
            MemberFile(m.name, key, None if is_alone else _modality(tar, m), m.offset, m.size)
            for m in group
            if is_alone or not _is_json(m)
        ]
        descriptions = [] if is_alone else [m for m in group if _is_json(m)]
        is_described = [bool(f.modality or claimed_modality(f.name)) for f in described]
        if any(is_described):
            captions = [_caption(tar, m, described, flaws) for m in descriptions]
            caption = next((c for c in captions if c is not None), None)
            media = [i for i, f in enumerate(described) if is_described[i] and f.modality != "text"]
            first = media[0] if media else 0
            described[first] = described[first]._replace(caption=caption)
        else:
            described += (MemberFile(m.name, key, "text", m.offset, m.size) for m in descriptions)
        files += described
    return sorted(files, key=lambda file: file.offset)


def _key(member: TarMember) -> str:
    """The name without its last suffix. A further member of the same name has its number in the
    key, so that it is a document of its own."""
    key = os.path.splitext(member.name)[0]
    return f"{key}#{member.copy + 1}" if member.copy else key


def _is_json(member: TarMember) -> bool:
    return member.name.lower().endswith(CAPTION_SUFFIX)


def _modality(tar: int, member: TarMember) -> str | None:
    """The modality that a member's first bytes show; None where they show none, or other content
    than its name says."""
    start = os.pread(tar, min(member.size, START_BYTES), member.offset)
    try:
        return detect_modality(member.name, start)
    except MediaError:
        return None


def _has_caption_file(described: Sequence[MemberFile]) -> bool:
    """Whether a member is the caption of the others, or all are texts, which need none."""
    texts = [file for file in described if file.modality == "text"]
    is_sidecar = any(file.name.lower().endswith(SIDECAR_SUFFIXES) for file in texts)
    return is_sidecar or len(texts) == len(described)


def _caption(
    tar: int, member: TarMember, described: Sequence[MemberFile], flaws: list[TarFlaw]
) -> str | None:
    """The caption in a JSON for the members that it describes; without one it is metadata, and is
    added to `flaws`."""
    if _has_caption_file(described):
        detail, caption = "a text of the same key is used instead", None
    elif member.size > MAX_JSON_BYTES:
        detail, caption = f"a JSON of {member.size} bytes is not read for a caption", None
    else:
        detail = "no caption or text in it"
        caption = caption_of_json(os.pread(tar, member.size, member.offset))
    if caption is None:
        flaws.append(TarFlaw(member.name, METADATA, detail, member.size))
    return caption
