"""Reading of sound files by libsndfile, in blocks up to their real end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import soundfile

from bytelm.modalities.audio_files.stream import BLOCK_FRAMES, FULL_SCALE, Block, SoundStream
from bytelm.modalities.base import MediaError

FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "CAF", "AU")
"""Formats that may be opened, by libsndfile's names."""
FLAC_CHECKSUM_ERROR = 161  # libsndfile's "unknown error in flac decoder"
UNKNOWN_FRAMES = 1 << 62  # libsndfile's number of frames for a FLAC header without a length
VORBIS_FULL_SCALE = 32767  # libsndfile scales Ogg by this, and integers by 32768
WIDE_SUBTYPES = ("PCM_24", "PCM_32", "ALAC_20", "ALAC_24", "ALAC_32")
"""Integers of more than 16 bits."""
FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")


class _ForwardSound(soundfile.SoundFile):
    """A file that is read from front to back.

    soundfile seeks after each read of a file that can seek. That alters samples of an MP3, and
    fails at the end of a FLAC without a length.
    """

    def seekable(self) -> bool:
        return False


def error_detail(error: soundfile.LibsndfileError) -> str:
    """libsndfile's message on one line."""
    words = error.error_string.removeprefix("Error : ").split()
    return " ".join(words) or f"libsndfile's error {error.code}"


def open_sound(file: BinaryIO) -> SoundStream:
    """Open a sound file by libsndfile; raises MediaError, LibsndfileError."""
    return open_joined([(0, file)])


def open_joined(parts: Sequence[tuple[int, BinaryIO]]) -> SoundStream:
    """Open files that follow one another in one, as one sound.

    Args:
        parts: position in the whole file, and the part as a file of its own.
    Raises:
        MediaError: of a format that is not allowed, without frames, or broken.
        LibsndfileError: libsndfile cannot open the first part.
    """
    first = _open(parts[0][1])
    kind = _block_type(first)
    stated = first.frames if len(parts) == 1 and first.frames < UNKNOWN_FRAMES else None
    return SoundStream(
        rate=first.samplerate,
        channels=first.channels,
        frames=stated,
        blocks=_read_parts(first, parts, kind),
        is_float=first.subtype in FLOAT_SUBTYPES,
        float_scale=VORBIS_FULL_SCALE if first.format == "OGG" else FULL_SCALE,
    )


def _open(file: BinaryIO) -> soundfile.SoundFile:
    file.seek(0)
    sound = _ForwardSound(file)
    if sound.format not in FORMATS:
        raise MediaError("unknown kind", f"a sound file of format {sound.format}")
    if not sound.frames:
        raise MediaError("empty", "a sound of 0 frames")
    return sound


def _block_type(sound: soundfile.SoundFile) -> str:
    """The type of the blocks: libsndfile lets Ogg wrap around as integers, and scales no floats."""
    if sound.format == "OGG" or sound.subtype in FLOAT_SUBTYPES:
        return "float32"
    return "int32" if sound.subtype in WIDE_SUBTYPES else "int16"


def _read_parts(
    first: soundfile.SoundFile, parts: Sequence[tuple[int, BinaryIO]], kind: str
) -> Iterator[Block]:
    for index, (position, file) in enumerate(parts):
        sound = _open(file) if index else first
        if (sound.samplerate, sound.channels) != (first.samplerate, first.channels):
            raise MediaError(
                "unreadable",
                f"from byte {position} on a sound of {sound.channels} channels and "
                f"{sound.samplerate} samples a second, before it one of {first.channels} and "
                f"{first.samplerate}",
            )
        with sound:
            yield from _read_blocks(sound, file, kind)


def _read_blocks(sound: soundfile.SoundFile, file: BinaryIO, kind: str) -> Iterator[Block]:
    """Blocks up to the end, which has to come where the header says.

    Samples that stay as they are come in one block where their number is known.
    """
    if sound.format in ("MP3", "OGG"):
        sound.seek(0)  # without it a few last bits of an MP3 differ from soundfile's
    is_known = sound.frames < UNKNOWN_FRAMES
    is_kept = kind == "int16" or sound.subtype in FLOAT_SUBTYPES
    size = sound.frames if is_known and is_kept else min(sound.frames, BLOCK_FRAMES)
    buffer = None if is_kept else np.empty((size, sound.channels), kind)
    read = 0
    while read < sound.frames:
        try:
            block = sound.read(size, kind, always_2d=True, out=buffer)
        except soundfile.LibsndfileError as error:
            if file.read(1) or error.code == FLAC_CHECKSUM_ERROR:
                raise MediaError("damaged", error_detail(error)) from error
            raise MediaError(
                "truncated", "the file ends inside its samples, or is damaged near its end"
            ) from error
        if not len(block):
            break
        read += len(block)
        yield block
    if not read or (is_known and read < sound.frames):
        raise MediaError("truncated", f"{read} frames where the header says {sound.frames}")
