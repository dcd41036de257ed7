"""Detection of a file's modality from its first bytes, and the check of its name against them."""

from __future__ import annotations

import re

from bytelm.modalities import BY_CODE
from bytelm.modalities.base import MediaError
from bytelm.modalities.binary_kinds import binary_kind

START_BYTES = 4096
"""Bytes of a file that detection reads."""
UNKNOWN_KIND = ("unknown kind", "no image, no sound, no text")
"""Reason and detail for a file of no modality."""

_SUFFIXES = {
    "image": (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib", "ico"),
        *("ppm", "pgm", "pbm", "pnm", "tif", "tiff", "avif", "heic", "heif", "jp2", "jxl"),
    ),
    "audio": (
        *("wav", "wave", "flac", "ogg", "oga", "opus", "mp2", "mp3", "aif", "aiff", "aifc"),
        *("au", "snd", "w64", "rf64", "caf", "m4a", "m4b", "aac", "wma", "amr", "weba", "mka"),
        *("mp4", "m4v", "mov", "webm", "mkv", "avi", "mpg", "mpeg", "wmv", "flv", "3gp", "ogv"),
    ),
}
MODALITY_OF_SUFFIX = {suffix: name for name, group in _SUFFIXES.items() for suffix in group}
"""The modality that a file's name claims, by suffixes in lower case. A video claims its sound.
Suffixes that texts have too (`.svg`, `.ts`, `.eps`) claim none."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_ANNEX_POINTER = re.compile(rb"(?:\.\./)*(?:\.git)?/annex/objects/\S+\s*\Z")
_COMPRESSED = ("a gzip file", "a bzip2 file", "an xz file", "a zstd file", "an lz4 file")
_MEDIA_KINDS = ("image", "icon", "video", "WMV file")
_TEXT_KINDS = {
    "HTML": re.compile(rb"<!doctype html|<html|<head", re.IGNORECASE),
    "XML": re.compile(rb"<\?xml"),
    "JSON": re.compile(rb"[{\[]\s*[\"\[{\d\]}]"),
}


def modality_of(start: bytes) -> str | None:
    """The name of the modality of a file that begins with `start`, its first START_BYTES.

    None where no modality recognises it.
    """
    for modality in reversed(BY_CODE):  # text, which takes most bytes, is asked last
        if modality.recognises(start):
            return modality.name
    return None


def claimed_modality(name: str) -> str | None:
    """The modality that a name's suffix claims: "image", "audio", or None."""
    return MODALITY_OF_SUFFIX.get(_suffix(name))


def _suffix(name: str) -> str:
    base = name[name.rfind("/") + 1 :]
    dot = base.rfind(".")
    return base[dot + 1 :].lower() if dot > 0 else ""


def detect_modality(name: str, start: bytes) -> str:
    """The modality of a file to train on: its content decides, and its name is checked against it.

    Args:
        name: the file's name, with or without folders.
        start: its first START_BYTES.
    Raises:
        MediaError: for the pointer of a large file that was not downloaded, for content that no
            modality recognises, and for a name of an image or a sound with other content.
    """
    refuse_pointer(start)
    modality = modality_of(start)
    claimed = claimed_modality(name)
    if modality is None:
        kind = binary_kind(start)
        if kind and claimed and not kind.endswith(_MEDIA_KINDS):
            raise _disagreement(name, kind)
        if kind in _COMPRESSED:
            raise MediaError("compressed", f"{kind}: decompress it first")
        raise MediaError("unknown kind", kind) if kind else MediaError(*UNKNOWN_KIND)
    if claimed not in (None, modality):
        kinds = {"text": _text_kind(start), "image": "an image", "audio": "a sound"}
        raise _disagreement(name, kinds[modality])
    return modality


def refuse_pointer(start: bytes) -> None:
    """Raise MediaError where a file that begins with `start` stands for a large one that was not
    downloaded."""
    if start.startswith(_LFS_POINTER) and b"oid sha256:" in start:
        raise MediaError("git-lfs pointer", "run `git lfs pull`")
    if _ANNEX_POINTER.match(start):
        raise MediaError("git-annex pointer", "run `git annex get`")


def _disagreement(name: str, kind: str) -> MediaError:
    return MediaError("name and content disagree", f"named .{_suffix(name)}, holds {kind}")


def _text_kind(start: bytes) -> str:
    """A text's kind for messages: "text (HTML)"."""
    content = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    kinds = (kind for kind, signature in _TEXT_KINDS.items() if signature.match(content))
    kind = next(kinds, None)
    return f"text ({kind})" if kind else "text"
