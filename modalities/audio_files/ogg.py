"""Ogg (RFC 3533): pages, their checksums, and the links of a chained file.

An Ogg file is a chain of links; a link is a group of logical streams whose pages interleave. A
page has 27 bytes of header, up to 255 lacing values, and the pieces of packets. libsndfile reads
the first link only, leaves out damaged pages without a word, and has no FLAC in Ogg.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from bytelm.modalities.audio_files.containers import TRAILING, TRAILING_BYTES
from bytelm.modalities.base import MediaError

CONTINUED, FIRST, LAST = 1, 2, 4
"""Flags of a page: it goes on with a packet; it begins a stream; it ends one."""
HEADER_BYTES = 27
CODECS = {b"\x01vorbis": "Vorbis", b"OpusHead": "Opus", b"\x7fFLAC": "FLAC", b"Speex   ": "Speex"}
"""Codecs by the start of a stream's first packet."""
NO_END_MARK = "no end mark"
JOINED = "several links joined"
OTHER_STREAMS = "other streams left out"

_PAGE = struct.Struct("<4xBBqIII B")
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Page:
    """The place of a page in the file."""

    start: int
    body: int
    """Position of the first byte after the header."""
    end: int
    flags: int
    lacing: bytes


@dataclass
class LogicalStream:
    """The pages of one stream, in order."""

    codec: str | None
    """None where it is no sound."""
    sequence: int
    """Number of the last page."""
    pages: list[Page] = field(default_factory=list)


@dataclass
class Link:
    """A group of streams that begin together."""

    start: int
    end: int = 0
    streams: dict[int, LogicalStream] = field(default_factory=dict)
    """Streams by serial number."""

    def sound(self) -> LogicalStream:
        """The first stream that is a sound; MediaError where there is none."""
        for stream in self.streams.values():
            if stream.codec:
                return stream
        raise MediaError("unknown kind", f"an Ogg link without a sound at byte {self.start}")

    def sound_file(self, data: bytes) -> bytes:
        """The pages of the first sound alone, of which the last is marked as the last.

        Without the mark libsndfile reads on after the end of an Opus stream.
        """
        pages = self.sound().pages
        last = pages[-1]
        if len(self.streams) == 1:
            before = data[self.start : last.start]
        else:
            before = b"".join(data[page.start : page.end] for page in pages[:-1])
        return before + _marked_as_last(data[last.start : last.end])


def read_links(data: bytes) -> tuple[list[Link], list[str]]:
    """The links of an Ogg file, and notes.

    Raises:
        MediaError: a page is cut, missing or damaged, or a packet is cut.
    """
    links: list[Link] = []
    notes: list[str] = []
    position, is_beginning = 0, False
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            if data.find(b"OggS", position) >= 0 or len(data) - position > TRAILING_BYTES:
                raise MediaError("damaged", f"bytes at {position} that are no Ogg page")
            notes.append(TRAILING)
            break
        page, serial, sequence = _read_page(data, position)
        if page.flags & FIRST and not is_beginning:
            links.append(Link(page.start))
        is_beginning = bool(page.flags & FIRST)
        if not links:
            raise MediaError("truncated", "the file begins inside a stream")
        _add_page(links[-1], page, serial, sequence, data)
        position = links[-1].end = page.end
    for link in links:
        sound = link.sound()
        last = sound.pages[-1]
        if last.lacing.endswith(b"\xff"):
            raise MediaError("truncated", f"the packet at byte {last.start} is cut")
        if not last.flags & LAST and NO_END_MARK not in notes:
            notes.append(NO_END_MARK)
        if len(link.streams) > 1 and OTHER_STREAMS not in notes:
            notes.append(OTHER_STREAMS)
    if len(links) > 1:
        notes.append(JOINED)
    return links, notes


def _marked_as_last(page: bytes) -> bytes:
    if page[5] & LAST:
        return page
    zeroed = page[:5] + bytes([page[5] | LAST]) + page[6:22] + bytes(4) + page[26:]
    return zeroed[:22] + page_checksum(zeroed).to_bytes(4, "little") + zeroed[26:]


def _read_page(data: bytes, start: int) -> tuple[Page, int, int]:
    """A page, its stream's serial number, and its own number; MediaError where it is damaged."""
    body = start + HEADER_BYTES
    if body > len(data):
        raise MediaError("truncated", f"the Ogg page at byte {start} is cut")
    version, flags, _, serial, sequence, checksum, segments = _PAGE.unpack_from(data, start)
    lacing = data[body : body + segments]
    body += segments
    end = body + sum(lacing)
    if end > len(data) or len(lacing) < segments:
        raise MediaError("truncated", f"the Ogg page at byte {start} is cut")
    zeroed = data[start : start + 22] + bytes(4) + data[start + 26 : end]
    if version or checksum != page_checksum(zeroed):
        raise MediaError("damaged", f"the Ogg page at byte {start} does not match its checksum")
    return Page(start, body, end, flags, lacing), serial, sequence


def _add_page(link: Link, page: Page, serial: int, sequence: int, data: bytes) -> None:
    """Add a page to its stream; MediaError where pages before it are missing."""
    if page.flags & FIRST:
        if serial in link.streams:
            raise MediaError("damaged", f"a stream begins twice, at byte {page.start}")
        start = data[page.body : page.body + 8]
        codec = next((name for key, name in CODECS.items() if start.startswith(key)), None)
        link.streams[serial] = LogicalStream(codec, sequence, [page])
        return
    stream = link.streams.get(serial)
    if stream is None:
        raise MediaError("damaged", f"the page at byte {page.start} is of no stream that began")
    if sequence != (stream.sequence + 1) & 0xFFFFFFFF:
        raise MediaError("damaged", f"Ogg pages are missing before byte {page.start}")
    stream.sequence = sequence
    stream.pages.append(page)


def page_checksum(page: bytes) -> int:
    """CRC-32 of a page (its checksum field zeroed): polynomial 04c11db7, not reflected, from 0.

    It is zlib's reflected CRC of the bytes with their bits in reverse, itself in reverse.
    """
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reflected.to_bytes(4).translate(_REVERSED), "little")


def packets(stream: LogicalStream, data: bytes) -> Iterator[bytes]:
    """The packets of a stream."""
    pieces: list[bytes] = []
    for page in stream.pages:
        position = page.body
        for length in page.lacing:
            pieces.append(data[position : position + length])
            position += length
            if length < 255:
                yield b"".join(pieces)
                pieces = []


def native_flac(stream: LogicalStream, data: bytes) -> bytes:
    """FLAC as a file of its own: marker, STREAMINFO and frames.

    The first packet holds 9 bytes of mapping, then `fLaC` and STREAMINFO; other metadata follow in
    packets of their own, then each frame in one.
    """
    all_packets = packets(stream, data)
    head = next(all_packets, b"")[9:]
    if head[:4] != b"fLaC" or len(head) < 42:
        raise MediaError("unreadable", "FLAC in Ogg without STREAMINFO")
    last_block = b"\x80" + head[5:]  # no metadata follow
    frames = (packet for packet in all_packets if packet[:1] == b"\xff")
    return b"".join([b"fLaC", last_block, *frames])
