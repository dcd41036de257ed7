"""A strict reader of tar headers, for tars that other programs wrote and for `bytelm index`.

    for each member   a header of 512 bytes, then its bytes, padded to a multiple of 512
    at the end        two blocks of zeros, and zeros up to a multiple of 10,240 bytes

(POSIX.1-2017, pax; and GNU's extensions for long names and sparse files.) The reader walks from
header to header and never reads a member's bytes. It reports a member that is no regular file and
goes on. Behind damage it goes on at the next block that is a header by its magic and its checksum,
and reports how many bytes lie between. Behind an end mark it goes on where another tar was joined
to the first, as `tar --ignore-zeros` does.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from tarfile import BLOCKSIZE, RECORDSIZE
from typing import NamedTuple

MAX_EXTENDED_BYTES = 1 << 20
"""Largest extended header or long name."""
MAX_PADDING_BYTES = 1 << 20
"""Most zeros that may follow the end mark; the customary ones are fewer than 10,240."""
DAMAGED_TAR = "damaged tar"
JOINED_TARS = "joined tars"

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
_HARD_LINK, _SYMBOLIC_LINK = b"1", b"2"
_LINKS = (_HARD_LINK, _SYMBOLIC_LINK)
_WITHOUT_DATA = (*_LINKS, b"3", b"4", _FOLDER, b"6")
"""Member types without data, whatever size their header has."""
_MAGIC, _MAGIC_OFFSET = b"ustar", 257
_SEARCH_BYTES = 1 << 20
_RECORD_LENGTH = re.compile(rb"([0-9]{1,7}) ")


class TarMember(NamedTuple):
    """A regular member."""

    name: str
    offset: int
    """Position of its first byte in the tar."""
    size: int
    """Size in bytes."""
    copy: int = 0
    """How many members of the same name stand before it."""


@dataclass(frozen=True)
class TarFlaw:
    """A member that is skipped, or what is wrong with the tar itself."""

    name: str
    """The member's name; empty where it is about the tar itself."""
    reason: str
    detail: str
    size: int = 0
    """Bytes that are lost with it."""
    count: int = 1
    """Members that it stands for; by estimate where they cannot be read."""
    target: str = ""
    """Name of the member that a link leads to, if it is in this tar."""
    is_cut: bool = False
    """Whether the tar ends without an end mark, so that more is lost than `size`."""


def read_members(path: str) -> Iterator[TarMember | TarFlaw]:
    """Every member of a tar, in order, and at the end what is wrong with the tar itself.

    Raises OSError where the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        tar_size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, BLOCKSIZE, 0)
        for magic, name in COMPRESSION_MAGIC.items():
            if start.startswith(magic):
                detail = f"compressed with {name}: decompress it first"
                yield TarFlaw("", "compressed tar", detail, tar_size)
                return
        yield from _TarWalk(descriptor, tar_size).members()
    finally:
        os.close(descriptor)


class _DamageError(Exception):
    """The reason why the reading cannot go on at the next header."""

    def __init__(self, cause: str, missing: int = 0):
        super().__init__(cause)
        self.missing = missing
        """Bytes that a member has beyond the end of the file."""


@dataclass
class _Extended:
    """Values of extended headers that apply to the next member."""

    name: str | None = None
    size: int | None = None
    target: str | None = None
    is_sparse: bool = False


class _TarWalk:
    """The way through an open tar, from header to header."""

    def __init__(self, descriptor: int, tar_size: int):
        self._descriptor = descriptor
        self._tar_size = tar_size
        self._offset = 0  # of the next header
        self._member_start = 0  # of the member that is being read, with its extended headers
        self._part_start = 0  # of the tar, or of the last one that was joined to it
        self._parts = 1
        self._members = 0
        self._copies: Counter[str] = Counter()
        self._has_end = False  # whether an end mark follows the last member
        self._unread = 0  # bytes between what was read
        self._missing = 0  # bytes that the last member has beyond the end of the file
        self._cause = ""  # of the first damage
        self._members_before = 0  # the first damage

    def members(self) -> Iterator[TarMember | TarFlaw]:
        """Every member, and at the end what is wrong with the tar. To be called once."""
        while True:
            try:
                yield from self._undamaged_members()
                break
            except _DamageError as damage:
                if not self._cause:
                    self._cause, self._members_before = str(damage), self._members
                found = self._find_header(self._member_start + BLOCKSIZE)
                if found is None:
                    self._unread += max(self._tar_size - self._member_start, 0)
                    self._missing = damage.missing
                    break
                self._unread += found - self._member_start
                self._offset = found
        if self._parts > 1:
            detail = f"{self._parts} tars joined in one file"
            yield TarFlaw("", JOINED_TARS, detail, count=self._parts)
        if self._cause:
            yield self._damage()

    def _damage(self) -> TarFlaw:
        """The flaw of a damaged tar, with the members lost by the mean size of those read."""
        lost = self._unread + self._missing
        detail = (
            f"damaged after {self._members_before:,} members, {lost:,} of "
            f"{self._tar_size + self._missing:,} bytes unread: {self._cause}"
        )
        further = self._members - self._members_before
        if further:
            detail += f"; {further:,} members behind it were read"
        read = self._tar_size - self._unread
        count = max(round(lost * self._members / read), 1) if read else 1
        is_cut = not self._has_end
        return TarFlaw("", DAMAGED_TAR, detail, lost, count, is_cut=is_cut)

    def _undamaged_members(self) -> Iterator[TarMember | TarFlaw]:
        """The members from the next header to the end or to damage, which raises _DamageError."""
        extended = _Extended()
        self._member_start = self._offset
        while header := self._next_header():
            self._has_end = False
            kind = header[156:157]
            data, size = _extent(self._descriptor, header, self._offset, extended)
            if data + size > self._tar_size:
                name = extended.name or _name(header)
                cause = f"{name} has {size} bytes at byte {data}, the tar {self._tar_size} in all"
                raise _DamageError(cause, missing=data + size - self._tar_size)
            self._offset = data + -(-size // BLOCKSIZE) * BLOCKSIZE
            if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
                if size > MAX_EXTENDED_BYTES:
                    raise _DamageError(f"an extended header of {size} bytes at byte {data}")
                _extend(extended, kind, os.pread(self._descriptor, size, data), data)
                continue
            if kind != _FOLDER:
                yield self._member(header, kind, data, size, extended)
            extended = _Extended()
            self._member_start = self._offset

    def _member(
        self, header: bytes, kind: bytes, data: int, size: int, extended: _Extended
    ) -> TarMember | TarFlaw:
        """A member, or why it is skipped."""
        self._members += 1
        name = _name(header) if extended.name is None else extended.name
        if kind == _SPARSE or extended.is_sparse:
            return TarFlaw(name, "sparse", "a member with holes", size)
        if kind in _LINKS:
            target = _text(header[157:257]) if extended.target is None else extended.target
            if kind == _SYMBOLIC_LINK:
                target = posixpath.join(posixpath.dirname(name), target)
            detail = "a link to another member or file"
            return TarFlaw(name, "link", detail, target=posixpath.normpath(target))
        if kind not in _REGULAR:
            detail = f"a member of type {kind!r}, no regular file"
            return TarFlaw(name, "unknown kind", detail, size)
        copy = self._copies[name]
        self._copies[name] += 1
        return TarMember(name, data, size, copy)

    def _next_header(self) -> bytes:
        """The checked header at the offset, or behind an end mark there; empty at the end."""
        header = os.pread(self._descriptor, BLOCKSIZE, self._offset)
        if len(header) < BLOCKSIZE:
            raise _DamageError(f"it ends at byte {self._tar_size} without an end mark")
        if any(header):
            if not _checksum_fits(header):
                raise _DamageError(f"no tar header at byte {self._offset}")
            return header
        self._has_end = True
        return self._header_after_end()

    def _header_after_end(self) -> bytes:
        """The header of a tar that was joined behind the end mark at the offset; empty where the
        file ends there."""
        found = self._find_data(self._offset)
        if found is None:
            rest = self._tar_size - self._offset
            if rest < 2 * BLOCKSIZE:
                self._member_start = self._tar_size
                raise _DamageError(f"it ends at byte {self._tar_size} inside its end mark")
            if rest > MAX_PADDING_BYTES:
                raise _DamageError(f"{rest} zeros from byte {self._offset} to its end")
            return b""
        start = found // BLOCKSIZE * BLOCKSIZE
        header = os.pread(self._descriptor, BLOCKSIZE, start)
        zeros = start - self._offset
        if len(header) < BLOCKSIZE or not _checksum_fits(header):
            if zeros >= 2 * BLOCKSIZE:
                self._member_start = start
            raise _DamageError(f"no header behind the end mark at byte {self._offset}")
        if (start - self._part_start) % RECORDSIZE:
            raise _DamageError(f"{zeros} zeros before the header at byte {start}")
        self._offset = self._member_start = self._part_start = start
        self._parts += 1
        return header

    def _find_data(self, offset: int) -> int | None:
        """Position of the first byte from `offset` on that is not zero; holes are skipped."""
        while offset < self._tar_size:
            try:
                offset = os.lseek(self._descriptor, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    return None
                raise
            chunk = os.pread(self._descriptor, _SEARCH_BYTES, offset)
            zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            if zeros < len(chunk):
                return offset + zeros
            offset += len(chunk)
        return None

    def _find_header(self, offset: int) -> int | None:
        """Position of the first header at or after the block at `offset`, by magic and
        checksum."""
        while (data := self._find_data(offset)) is not None:
            offset = data // BLOCKSIZE * BLOCKSIZE
            chunk = os.pread(self._descriptor, _SEARCH_BYTES, offset)
            for start in range(0, len(chunk) - BLOCKSIZE + 1, BLOCKSIZE):
                has_magic = chunk.startswith(_MAGIC, start + _MAGIC_OFFSET)
                if has_magic and _checksum_fits(chunk[start : start + BLOCKSIZE]):
                    return offset + start
            offset += _SEARCH_BYTES
        return None


def _extent(descriptor: int, header: bytes, offset: int, extended: _Extended) -> tuple[int, int]:
    """Offset and size of the data behind the header at `offset`."""
    kind = header[156:157]
    data = offset + BLOCKSIZE
    if kind == _SPARSE:
        data = _after_sparse_map(descriptor, header, data)
    size = extended.size if extended.size is not None else _number(header[124:136], offset)
    return data, 0 if kind in _WITHOUT_DATA else size


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
        extended.target = _text(content)
        return
    for key, value in _records(content, offset):
        if key not in ("path", "linkpath", "size") and not key.startswith("GNU.sparse."):
            continue
        if kind == _PAX_GLOBAL:
            raise _DamageError(f"a global header that sets {key} at byte {offset}")
        if key == "path":
            extended.name = value
        elif key == "linkpath":
            extended.target = value
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
