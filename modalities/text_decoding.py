"""Detection of texts, and the bytes of a text file as samples hold them.

A text stays as it is, byte for byte, in whatever encoding without zero bytes it has: UTF-8 with or
without its byte order mark, Latin-1, Shift-JIS, KOI8, invalid sequences included. Two kinds are
converted, with a note: UTF-16 and UTF-32 become UTF-8, and a text in gzip is decompressed.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from typing import BinaryIO

from bytelm.modalities.base import MediaError
from bytelm.modalities.binary_kinds import binary_kind

GZIP_MAGIC = b"\x1f\x8b\x08"
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16, so it is asked first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ENCODING_BYTES = 4096
"""Bytes of a text without a byte order mark by which UTF-16 is recognised."""
_UTF16_MIN_BYTES = 8
_CHUNK_BYTES = 1 << 20
_CONTROLS = bytes(c for c in range(1, 32) if c not in b"\b\t\n\v\f\r\x0e\x0f\x1a\x1b")
"""Characters that no text has many of. Printers' backspace, shifts between character sets, DOS's
end mark and the escapes of terminals are left out."""
_C1_CONTROL = re.compile(rb"\xc2[\x80-\x9f]")
_MAX_CONTROLS = 0.2
"""Largest share of _CONTROLS in a text. Fields separated by control characters, as in Hive's tables
and FIX messages, are 0.1; random bytes, which texts in unknown encodings resemble, 0.08."""


def is_text(start: bytes) -> bool:
    """Whether a file that begins with `start` may be a text. The rest of the file decides.

    False for starts with zero bytes, but for UTF-16 and UTF-32; for known binary formats; and for
    many control characters.
    """
    if start.startswith(GZIP_MAGIC):
        inner = _start_of_gzip(start)
        return not inner.startswith(GZIP_MAGIC) and is_text(inner)
    encoding = _wide_encoding(start)
    if encoding:
        start = _decode_start(start, encoding) or b""
    return b"\0" not in start and binary_kind(start) is None and not _has_many_controls(start)


def read_text(file: BinaryIO, max_bytes: int) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of a text as its sample holds them, and notes on what was changed.

    Args:
        file: the file, from its start.
        max_bytes: largest size of the file, and of the text.
    Raises:
        MediaError: for an empty file, one over the limit, and one that is no text.
    """
    notes: tuple[str, ...] = ()
    data = _limited(file.read(max_bytes + 1), max_bytes)
    if data.startswith(GZIP_MAGIC):
        data = _limited(_decompress(data, max_bytes), max_bytes)
        notes += ("decompressed from gzip",)
    encoding = _wide_encoding(data)
    if encoding:
        data = _limited(_converted(data, encoding, max_bytes), max_bytes)
        notes += (f"converted from {encoding[:6].upper()}",)
    if not data:
        raise MediaError("empty", "a text of 0 bytes")
    zero = data.find(b"\0")
    if zero >= 0:
        raise MediaError("unknown kind", f"binary: a zero byte at byte {zero}")
    if _has_many_controls(data):
        raise MediaError("unknown kind", "binary: too many control characters for a text")
    return data, notes


def _limited(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise MediaError("over the limit", f"more than {max_bytes} bytes of text")
    return data


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 in a byte order, by the byte order mark or by the zeros; None for others.

    A mark counts where the text behind it is valid: the mark of UTF-16 is "ÿþ" in Latin-1.
    """
    start = data[:_ENCODING_BYTES]
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return encoding if _decode_start(start, encoding) is not None else None
    if b"\0" not in start or len(start) < _UTF16_MIN_BYTES:
        return None
    even, odd = start[::2].count(0), start[1::2].count(0)
    for zeros, others, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if not others and zeros >= len(start) // 4:
            text = _decode_start(start, encoding)
            # Control characters show an array of small numbers.
            is_array = text is None or _C1_CONTROL.search(text) or _controls(text)
            return None if is_array else encoding
    return None


def _decode_start(start: bytes, encoding: str) -> bytes | None:
    """The first characters of a text in UTF-16 or UTF-32 as UTF-8, without a byte order mark;
    None where they are invalid or have zeros. The last character may be cut, but not in a short
    text without zero bytes, which can be one of 8 bits."""
    is_whole = b"\0" not in start and len(start) < _ENCODING_BYTES
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start, is_whole)
        text = text.removeprefix("\ufeff")
    except UnicodeError:
        return None
    return None if "\0" in text else text.encode()


def _converted(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """A text in UTF-16 or UTF-32 as UTF-8, without a byte order mark.

    Raises MediaError for an invalid text and for one that ends inside a character. The conversion
    stops above `max_bytes`.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    chunks: list[bytes] = []
    size = 0
    try:
        for offset in range(0, len(data), _CHUNK_BYTES):
            chunk = data[offset : offset + _CHUNK_BYTES]
            text = decoder.decode(chunk, offset + _CHUNK_BYTES >= len(data))
            chunks.append((text if offset else text.removeprefix("\ufeff")).encode())
            size += len(chunks[-1])
            if size > max_bytes:
                break
    except UnicodeError as error:
        name = encoding[:6].upper()
        raise MediaError("damaged", f"no valid {name} after {size} bytes of text") from error
    return b"".join(chunks)


def _start_of_gzip(start: bytes) -> bytes:
    """The first bytes of a text in gzip, empty where they cannot be read."""
    try:
        return zlib.decompressobj(wbits=31).decompress(start, _ENCODING_BYTES)
    except zlib.error:
        return b""


def _decompress(data: bytes, max_bytes: int) -> bytes:
    """The content of a gzip file, up to `max_bytes` + 1 of it. MediaError where it is damaged."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(max_bytes + 1)
    except EOFError as error:
        raise MediaError("truncated", "the gzip file ends before its end mark") from error
    except (OSError, zlib.error) as error:
        raise MediaError("damaged", f"gzip: {error}") from error


def _controls(data: bytes) -> int:
    return len(data) - len(data.translate(None, _CONTROLS))


def _has_many_controls(data: bytes) -> bool:
    return _controls(data) > _MAX_CONTROLS * len(data)
