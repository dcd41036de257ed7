"""A strict reader of tar headers, for tars that other programs wrote and for `bytelm index`.

    for each member   a header of 512 bytes, then its bytes, padded to a multiple of 512
    at the end        two blocks of zeros, and zeros up to a multiple of 10,240 bytes

(POSIX.1-2017, pax; and GNU's extensions for long names and sparse files.) The reader walks from
header to header and never reads a member's bytes. It reports a member that is no regular file and
goes on; it stops at a broken header, since nothing after that can be trusted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from tarfile import BLOCKSIZE

MAX_EXTENDED_BYTES = 1 << 20
"""Largest extended header or long name."""
MAX_PADDING_BYTES = 1 << 20
"""Most zeros that may follow the end mark; the customary ones are fewer than 10,240."""

COMPRESSION_MAGIC = {
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
"""Member types without data, whatever size their header has."""
_RECORD_LENGTH = re.compile(rb"([0-9]{1,7}) ")


@dataclass(frozen=True)
class TarMember:
    """A regular member."""

    name: str
    offset: int
    """Position of its first byte in the tar."""
    size: int
    """Size in bytes."""


@dataclass(frozen=True)
class TarFlaw:
    """A member that is skipped, or damage that ends the reading."""

    name: str
    """The member's name; empty where the tar itself is damaged."""
    reason: str
    detail: str


def read_members(path: str) -> Iterator[TarMember | TarFlaw]:
    """Every member of a tar, in order. Raises OSError where the file cannot be read."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        tar_size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, BLOCKSIZE, 0)
        for magic, name in COMPRESSION_MAGIC.items():
            if start.startswith(magic):
                detail = f"compressed with {name}; decompress it first"
                yield TarFlaw("", "compressed tar", detail)
                return
        try:
            yield from _members(descriptor, tar_size)
        except _DamageError as damage:
            yield TarFlaw("", "damaged tar", str(damage))
    finally:
        os.close(descriptor)


class _DamageError(Exception):
    """The reason why the reading ends."""


@dataclass
class _Extended:
    """Values of extended headers that apply to the next member."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False


def _members(descriptor: int, tar_size: int) -> Iterator[TarMember | TarFlaw]:
    offset = 0
    extended = _Extended()
    names: set[str] = set()
    while header := _read_header(descriptor, offset, tar_size):
        kind = header[156:157]
        data, size = _extent(descriptor, header, offset, extended)
        if data + size > tar_size:
            name = extended.name or _name(header)
            raise _DamageError(f"{name} has {size} bytes at byte {data}, the tar {tar_size} in all")
        offset = data + -(-size // BLOCKSIZE) * BLOCKSIZE
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if size > MAX_EXTENDED_BYTES:
                raise _DamageError(f"an extended header of {size} bytes at byte {data}")
            _extend(extended, kind, os.pread(descriptor, size, data), data)
            continue
        if kind != _FOLDER:
            name = _name(header) if extended.name is None else extended.name
            is_sparse = kind == _SPARSE or extended.is_sparse
            flaw = _flaw(kind, name, is_sparse, name in names)
            if flaw is None:
                names.add(name)
            yield flaw or TarMember(name, data, size)
        extended = _Extended()


def _read_header(descriptor: int, offset: int, tar_size: int) -> bytes:
    """The checked header at an offset; empty at the end of the tar."""
    header = os.pread(descriptor, BLOCKSIZE, offset)
    if len(header) < BLOCKSIZE:
        raise _DamageError(f"it ends at byte {tar_size} without an end mark")
    if not any(header):
        _check_end(descriptor, offset, tar_size)
        return b""
    if not _checksum_fits(header):
        raise _DamageError(f"no tar header at byte {offset}")
    return header


def _extent(descriptor: int, header: bytes, offset: int, extended: _Extended) -> tuple[int, int]:
    """Offset and size of the data behind the header at `offset`."""
    kind = header[156:157]
    data = offset + BLOCKSIZE
    if kind == _SPARSE:
        data = _after_sparse_map(descriptor, header, data)
    size = extended.size if extended.size is not None else _number(header[124:136], offset)
    return data, 0 if kind in _WITHOUT_DATA else size


def _flaw(kind: bytes, name: str, is_sparse: bool, is_duplicate: bool) -> TarFlaw | None:
    """Why a member is skipped, or None."""
    if is_sparse:
        return TarFlaw(name, "sparse", "a member with holes")
    if kind in _LINKS:
        return TarFlaw(name, "link", "a link to another member or file")
    if kind not in _REGULAR:
        return TarFlaw(name, "unknown kind", f"a member of type {kind!r}, no regular file")
    if is_duplicate:
        return TarFlaw(name, "duplicate key", "the tar holds this name already")
    return None


def _check_end(descriptor: int, offset: int, tar_size: int) -> None:
    """Check that the end mark at `offset` is whole, and that only some zeros follow it."""
    rest = tar_size - offset
    if rest < 2 * BLOCKSIZE:
        raise _DamageError(f"it ends at byte {tar_size} inside its end mark")
    if rest > MAX_PADDING_BYTES or any(os.pread(descriptor, rest, offset)):
        raise _DamageError(
            f"{rest} bytes after an end mark at byte {offset}: zeroed, or tars joined"
        )


def _checksum_fits(header: bytes) -> bool:
    """Whether the checksum is the sum of the header's bytes, with its own eight as spaces."""
    digits = header[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,7}", digits):
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    return int(digits, 8) == sum(rest)


def _number(field: bytes, offset: int) -> int:
    """The size in a header at `offset`: octal digits, or binary after a byte 0x80 (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]+", digits):
        raise _DamageError(f"a size of {field!r} in the header at byte {offset}")
    return int(digits, 8)


def _name(header: bytes) -> str:
    """The name in a header, with its prefix if it is a POSIX one."""
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _after_sparse_map(descriptor: int, header: bytes, data: int) -> int:
    """Offset of the data of an old GNU sparse member, which follow the blocks of its map."""
    has_more = header[482]
    while has_more:
        block = os.pread(descriptor, BLOCKSIZE, data)
        if len(block) < BLOCKSIZE:
            raise _DamageError(f"it ends inside a sparse member's map at byte {data}")
        has_more = block[504]
        data += BLOCKSIZE
    return data


def _extend(extended: _Extended, kind: bytes, content: bytes, offset: int) -> None:
    """Add the values of an extended header, whose content begins at `offset`."""
    if kind == _LONG_NAME:
        extended.name = _text(content)
        return
    if kind == _LONG_LINK:
        return
    for key, value in _records(content, offset):
        if key not in ("path", "size") and not key.startswith("GNU.sparse."):
            continue
        if kind == _PAX_GLOBAL:
            raise _DamageError(f"a global header that sets {key} at byte {offset}")
        if key == "path":
            extended.name = value
        elif key == "size":
            if not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII):
                raise _DamageError(f"a size of {value[:40]!r} in the header at byte {offset}")
            extended.size = int(value)
        else:
            extended.is_sparse = True


def _records(content: bytes, offset: int) -> Iterator[tuple[str, str]]:
    """Key and value of each record of a pax header at `offset`.

    A record is its own length in decimal, a space, key=value, and a line feed.
    """
    position = 0
    while position < len(content):
        match = _RECORD_LENGTH.match(content, position)
        length = int(match[1]) if match else 0
        record = content[position : position + length]
        is_whole = match and len(match[0]) < length == len(record) and record[-1:] == b"\n"
        if not match or not is_whole:
            raise _DamageError(f"a broken extended header at byte {offset}")
        key, separator, value = record[len(match[0]) : -1].partition(b"=")
        if not separator:
            raise _DamageError(f"a broken extended header at byte {offset}")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "surrogateescape")
        position += length
