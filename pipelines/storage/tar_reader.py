"""Reading the headers of foreign tars, strictly: what lies where, and what is wrong.

    for each member   a header of 512 bytes, then its bytes, padded to a multiple of 512
    at the end        two blocks of zeros, and zeros up to a multiple of 10,240 bytes

(POSIX.1-2017, pax; and GNU's extensions for long names and sparse files.) Headers are read one by
one and members are never read here. A member that is no regular file is skipped. A header that is
broken ends the reading, since nothing after it can be trusted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

TAR_BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 20
"""Of an extended header or a long name."""
MAX_PADDING_BYTES = 1 << 20
"""Of zeros that may follow the end mark; the customary ones are fewer than 10,240."""

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
COMPRESSED_SUFFIXES = (
    *(".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4"),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst"),
)

_REGULAR, _FOLDER, _SPARSE = (b"0", b"\0"), b"5", b"S"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_LINKS = (b"1", b"2")
_WITHOUT_DATA = (*_LINKS, b"3", b"4", _FOLDER, b"6")
"""Kinds that have no data, whatever size their header says."""


@dataclass(frozen=True)
class Member:
    """A regular member."""

    name: str
    offset: int
    """Of its first byte in the tar."""
    size: int


@dataclass(frozen=True)
class Flaw:
    """A member that is skipped, or what ends the reading."""

    name: str
    """The member's; empty where it is the tar itself that is damaged."""
    reason: str
    detail: str


class _Damage(Exception):
    """Why the reading ends."""


@dataclass
class _Extended:
    """What extended headers say of the member that follows them."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False


def read_members(path: str) -> Iterator[Member | Flaw]:
    """Every member of a tar, in order. Raises OSError where the file cannot be read."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, TAR_BLOCK, 0)
        for magic, name in COMPRESSED.items():
            if start.startswith(magic):
                detail = f"compressed with {name}; decompress it first"
                yield Flaw("", "compressed tar", detail)
                return
        try:
            yield from _members(descriptor, size)
        except _Damage as damage:
            yield Flaw("", "damaged tar", str(damage))
    finally:
        os.close(descriptor)


def _members(descriptor: int, size: int) -> Iterator[Member | Flaw]:
    at = 0
    extended = _Extended()
    names: set[str] = set()
    while True:
        header = os.pread(descriptor, TAR_BLOCK, at)
        if len(header) < TAR_BLOCK:
            raise _Damage(f"it ends at byte {size} without an end mark")
        if not any(header):
            _check_end(descriptor, at, size)
            return
        if not _checksum_fits(header):
            raise _Damage(f"no tar header at byte {at}")
        kind = header[156:157]
        data = at + TAR_BLOCK
        if kind == _SPARSE:
            data = _after_sparse_map(descriptor, header, data)
        length = extended.size if extended.size is not None else _number(header[124:136], at)
        if kind in _WITHOUT_DATA:
            length = 0
        at = data + -(-length // TAR_BLOCK) * TAR_BLOCK
        if data + length > size:
            name = extended.name or _name(header)
            raise _Damage(f"{name} has {length} bytes at byte {data}, the tar {size} in all")
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if length > MAX_EXTENDED_BYTES:
                raise _Damage(f"an extended header of {length} bytes at byte {data}")
            _extend(extended, kind, os.pread(descriptor, length, data), data)
            continue
        name = _name(header) if extended.name is None else extended.name
        is_sparse = kind == _SPARSE or extended.is_sparse
        extended = _Extended()
        if kind == _FOLDER:
            continue
        if is_sparse:
            yield Flaw(name, "sparse", "a member with holes")
        elif kind in _LINKS:
            yield Flaw(name, "link", "a link to another member or file")
        elif kind not in _REGULAR:
            yield Flaw(name, "unknown kind", f"a member of type {kind!r}, no regular file")
        elif name in names:
            yield Flaw(name, "duplicate key", "the tar holds this name already")
        else:
            names.add(name)
            yield Member(name, data, length)


def _check_end(descriptor: int, at: int, size: int) -> None:
    """After the end mark, nothing but some zeros may come."""
    rest = size - at
    if rest < 2 * TAR_BLOCK:
        raise _Damage(f"it ends at byte {size} inside its end mark")
    if rest > MAX_PADDING_BYTES or any(os.pread(descriptor, rest, at)):
        raise _Damage(f"{rest} bytes after an end mark at byte {at}: zeroed, or tars joined")


def _checksum_fits(header: bytes) -> bool:
    """The sum of the header's bytes, its own eight taken as spaces."""
    digits = header[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,7}", digits):
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    return int(digits, 8) == sum(rest)


def _number(field: bytes, at: int) -> int:
    """A size: octal digits, or binary where the first bit is set (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]+", digits):
        raise _Damage(f"a size of {field!r} in the header at byte {at}")
    return int(digits, 8)


def _name(header: bytes) -> str:
    """The name in a header, with its prefix if it is a POSIX one."""
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _after_sparse_map(descriptor: int, header: bytes, data: int) -> int:
    """Where the data of an old GNU sparse member begin: after the blocks of its map."""
    goes_on = header[482]
    while goes_on:
        block = os.pread(descriptor, TAR_BLOCK, data)
        if len(block) < TAR_BLOCK:
            raise _Damage(f"it ends inside a sparse member's map at byte {data}")
        goes_on = block[504]
        data += TAR_BLOCK
    return data


def _extend(extended: _Extended, kind: bytes, content: bytes, at: int) -> None:
    """Add what an extended header says."""
    if kind == _LONG_NAME:
        extended.name = _text(content)
        return
    if kind == _LONG_LINK:
        return
    for key, value in _records(content, at):
        if key not in ("path", "size") and not key.startswith("GNU.sparse."):
            continue
        if kind == _PAX_GLOBAL:
            raise _Damage(f"a global header that sets {key} at byte {at}")
        if key == "path":
            extended.name = value
        elif key == "size":
            if not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII):
                raise _Damage(f"a size of {value[:40]!r} in the header at byte {at}")
            extended.size = int(value)
        else:
            extended.is_sparse = True


def _records(content: bytes, at: int) -> Iterator[tuple[str, str]]:
    """The records of a pax header: their length in decimal, a space, key=value, a line feed."""
    place = 0
    while place < len(content):
        match = re.compile(rb"([0-9]{1,7}) ").match(content, place)
        length = int(match[1]) if match else 0
        record = content[place : place + length]
        is_whole = match and len(match[0]) < length == len(record) and record[-1:] == b"\n"
        if not match or not is_whole:
            raise _Damage(f"a broken extended header at byte {at}")
        key, separator, value = record[len(match[0]) : -1].partition(b"=")
        if not separator:
            raise _Damage(f"a broken extended header at byte {at}")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "surrogateescape")
        place += length
