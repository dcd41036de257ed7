"""Names of common binary formats that are neither images, sounds nor texts, by their first bytes.

Some of them have no zero byte near their start, so that the absence of one does not prove a text.
"""

from __future__ import annotations

import re

_SIGNATURES = {
    "a PDF": rb"%PDF-\d",
    "a zip archive": rb"PK(?:\x03\x04|\x05\x06|\x07\x08)",
    "a gzip file": rb"\x1f\x8b\x08",
    "a bzip2 file": rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)",
    "an xz file": rb"\xfd7zXZ\0",
    "a zstd file": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
    "an lz4 file": rb"\x04\x22\x4d\x18",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive": rb"Rar!\x1a\x07",
    "a tar archive": rb".{257}ustar[\0 ]",
    "an ar archive": rb"!<arch>\n",
    "an RPM package": rb"\xed\xab\xee\xdb",
    "an ELF binary": rb"\x7fELF",
    "a Windows program": rb"MZ.{58}.{2}\0\0",
    "a Mach-O binary": rb"[\xce\xcf]\xfa\xed\xfe|\xfe\xed\xfa[\xce\xcf]",
    "Java or Mach-O code": rb"\xca\xfe\xba\xbe",
    "WebAssembly code": rb"\0asm",
    "Python bytecode": rb".[\x0a-\x0f]\r\n[\0-\3]\0\0\0",
    "a Python pickle": rb"\x80[\x02-\x05][(\])}\x80-\x8f\x95cKXGN]",
    "a NumPy array": rb"\x93NUMPY[\1-\3]\0",
    "an HDF5 file": rb"\x89HDF\r\n\x1a\n",
    "a Parquet table": rb"PAR1[\x15\0]",
    "an Arrow table": rb"ARROW1\0\0",
    "an SQLite database": rb"SQLite format 3\0",
    "a GGUF model": rb"GGUF[\1-\x09]\0\0\0",
    "an old Office document": rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "a font": rb"\0\1\0\0\0|OTTO\0|ttcf\0|wOF[F2](?:\0\1\0\0|OTTO|true)",
    "gettext messages": rb"\xde\x12\x04\x95|\x95\x04\x12\xde",
    "a git pack or index": rb"(?:PACK|DIRC|\xfftOc)\0",
    "a Photoshop image": rb"8BPS\0[\1\2]",
    "a JPEG 2000 image": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL image": rb"\0\0\0\x0cJXL |\xff\x0a[\0-\x08\x0b\x0e-\x1f\x80-\xff]",
    "an icon": rb"\0\0[\1\2]\0[\1-\xff]\0",
    "a TIFF image": rb"II\x2a\0|MM\0\x2a",
    "an AVIF or HEIC image": rb"....ftyp(?:avi[fs]|hei[cxmsfv]|mif1|msf1)",
    "an MP4 or QuickTime video": rb"....ftyp",
    "a Matroska or WebM video": rb"\x1a\x45\xdf\xa3",
    "an AVI video": rb"RIFF....AVI ",
    "a Flash video": rb"FLV\1",
    "an MPEG video": rb"\0\0\1[\xba\xb3]",
    "a WMA or WMV file": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "a MIDI file": rb"MThd\0\0\0\6",
}
_SIGNATURE = re.compile(b"|".join(b"(%b)" % s for s in _SIGNATURES.values()), re.DOTALL)
_NAMES = tuple(_SIGNATURES)


def binary_kind(start: bytes) -> str | None:
    """The name, with its article, of the binary format that begins with `start`; None if no
    signature fits. Images and sounds that are decoded must be asked for before."""
    match = _SIGNATURE.match(start)
    return _NAMES[match.lastindex - 1] if match and match.lastindex else None
