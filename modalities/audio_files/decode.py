"""Decoding of sound files to 16-bit PCM: the choice of a reader, the mix and the resampling.

    container mended (WAV, AIFF, CAF, ...), frames counted (MP3), pages checked (Ogg)
    -> reader (libsndfile, or PyAV for MP4, WebM, ...) -> blocks of wide samples -> 16 bits
    -> mono, where asked -> another rate, where asked

n frames (one sample of each channel)    c channels
"""

from __future__ import annotations

import io
import math
from itertools import chain
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from bytelm.modalities.audio_files import ogg
from bytelm.modalities.audio_files.containers import mend_container, wave_codec
from bytelm.modalities.audio_files.flac import JOINED as JOINED_FLAC
from bytelm.modalities.audio_files.flac import (
    NO_CHECKSUM,
    checked_blocks,
    find_streams,
    parse_stream_info,
)
from bytelm.modalities.audio_files.libav import DEMUXERS, open_with_libav
from bytelm.modalities.audio_files.libsndfile import error_detail, open_joined, open_sound
from bytelm.modalities.audio_files.mp3 import (
    ID3V1_BYTES,
    id3_size,
    is_layer_2,
    mended_part,
    read_parts,
)
from bytelm.modalities.audio_files.reduction import (
    Floats,
    Samples,
    choose_mix,
    mixed,
    reduce_stream,
    to_deep_pcm,
    to_floats,
    to_pcm,
)
from bytelm.modalities.audio_files.resampling import resampled
from bytelm.modalities.audio_files.stream import SoundStream
from bytelm.modalities.base import DecodeOptions, Limits, MediaError
from bytelm.modalities.spliced_file import spliced

MAX_RESAMPLING_TAPS = 1 << 24
FLAC_HEADER_BYTES = 42
"""`fLaC`, and STREAMINFO with its block's header."""
MP3_IN_WAV = 0x55
"""A codec in WAV that libsndfile opens, but does not read to the end."""
CONTAINER_DEMUXERS = {b"RIFF": "wav", b"FORM": "aiff", b"caff": "caf"}
"""FFmpeg's demuxers of containers that hold codecs which libsndfile lacks."""
LIBSNDFILE_FLAC_BITS = (8, 16, 24)


class DecodedSound(NamedTuple):
    """A sound as shards hold it."""

    samples: Samples
    """[n c] samples of 16 bits; of 24 where the file has more and they are to be kept."""
    rate: int
    """Samples a second in each channel."""
    notes: tuple[str, ...]
    """Changes that decoding made, in words that reports count."""

    @property
    def is_deep(self) -> bool:
        """Whether the samples have 24 bits."""
        return self.samples.dtype == np.int32

    def data(self) -> bytes:
        """The samples as shards hold them: 16 bits little-endian, or 24 bits big-endian."""
        if not self.is_deep:
            return self.samples.astype("<i2", copy=False).tobytes()
        return self.samples.astype(">i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def decode_sound(file: BinaryIO, options: DecodeOptions) -> DecodedSound:
    """Decode an open sound file, read to its real end.

    Raises:
        MediaError: the file is broken, too large or of a kind that is not allowed.
    """
    if options.audio_channels not in (None, 1):
        raise ValueError(
            f"audio_channels is {options.audio_channels}; choose 1 (mixed down to mono) or None "
            "(the file's own)"
        )
    try:
        stream = _open_stream(file, options.limits)
        _check_stream(stream, options)
        samples, lost = reduce_stream(stream, options.limits.max_bytes, options.keep_depth)
    except soundfile.LibsndfileError as error:
        raise MediaError("unreadable", error_detail(error)) from error
    notes = (*stream.notes, *lost)
    _check_size(len(samples), stream, options)
    return _converted(DecodedSound(samples, stream.rate, notes), options)


def _converted(sound: DecodedSound, options: DecodeOptions) -> DecodedSound:
    """A sound mixed down and resampled, where the options ask for it."""
    rate = options.audio_rate or sound.rate
    mix = options.audio_channels == 1 and sound.samples.shape[1] > 1
    if not mix and rate == sound.rate:
        return sound
    channel, notes = choose_mix(sound.samples) if mix else (None, [])
    convert = to_deep_pcm if sound.is_deep else to_pcm

    def floats(part: slice) -> Floats:
        samples = to_floats(sound.samples[part])
        return mixed(samples, channel) if mix else samples

    samples = resampled(floats, len(sound.samples), (sound.rate, rate), convert)
    return DecodedSound(samples, rate, (*sound.notes, *notes))


def _open_stream(file: BinaryIO, limits: Limits) -> SoundStream:
    """Open a file by the reader for its first bytes."""
    file.seek(0)
    after_id3 = id3_size(file.read(64))
    file.seek(after_id3)
    start = file.read(64)
    for signature, (demuxer, kind) in DEMUXERS.items():
        if signature.match(start):
            return open_with_libav(file, demuxer, kind, limits)
    if start[:4] == b"fLaC":
        return _open_flac(file, after_id3, limits)
    if start[:4] == b"OggS":
        return _open_ogg(file, limits)
    if after_id3 or start[:1] in (b"\0", b"\xff"):
        return _open_mp3(file, limits)
    return _open_container(file, start, limits)


def _open_flac(file: BinaryIO, start: int, limits: Limits) -> SoundStream:
    """Open native FLAC that begins at a position, after an ID3 tag; joined files as one sound."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - ID3V1_BYTES))
    end = size - ID3V1_BYTES if file.read(3) == b"TAG" else size
    parts = find_streams(file, start, end)
    if len(parts) == 1:
        return _open_flac_part(file if parts[0] == range(size) else spliced(file, parts), limits)
    files = [spliced(file, [part]) for part in parts]
    infos = [parse_stream_info(part.read(FLAC_HEADER_BYTES)[8:]) for part in files]
    for info, part in zip(infos, parts, strict=True):
        if info.form != infos[0].form:
            raise MediaError(
                "unreadable",
                f"from byte {part.start} on a FLAC of {info.form}, before it one of "
                f"{infos[0].form}",
            )
    stream = _open_flac_part(files[0], limits)
    others = (_open_flac_part(part, limits).blocks for part in files[1:])
    stream.frames = None
    stream.blocks = chain(stream.blocks, chain.from_iterable(others))
    stream.notes.append(JOINED_FLAC)
    return stream


def _open_flac_part(file: BinaryIO, limits: Limits) -> SoundStream:
    """Open a file of one FLAC stream."""
    file.seek(0)
    header = file.read(FLAC_HEADER_BYTES)
    info = parse_stream_info(header[8:])
    if not info.rate:
        raise MediaError("unreadable", "0 samples a second")
    if info.bits in LIBSNDFILE_FLAC_BITS:
        stream = open_sound(file)
    else:
        stream = open_with_libav(file, "flac", f"FLAC of {info.bits} bits", limits)
    if info.checksum != NO_CHECKSUM:
        stream.blocks = checked_blocks(stream.blocks, info)
    return stream


def _open_container(file: BinaryIO, start: bytes, limits: Limits) -> SoundStream:
    """Open WAV, AIFF, CAF and their like; by FFmpeg where libsndfile lacks the codec."""
    mended, notes = mend_container(file, limits.max_bytes)
    demuxer = CONTAINER_DEMUXERS.get(start[:4])
    if start[:4] == b"RIFF" and wave_codec(mended) == MP3_IN_WAV:
        stream = open_with_libav(mended, "wav", "MP3 in WAV", limits)
    else:
        try:
            stream = open_sound(mended)
        except soundfile.LibsndfileError as error:
            if demuxer is None:
                raise
            try:
                stream = open_with_libav(mended, demuxer, error_detail(error), limits)
            except MediaError as refusal:
                raise error from refusal
    stream.notes += notes
    return stream


def _open_ogg(file: BinaryIO, limits: Limits) -> SoundStream:
    """Open an Ogg file; each link of a chain by itself."""
    file.seek(0)
    data = file.read()
    links, notes = ogg.read_links(data)
    codecs = {link.sound().codec for link in links}
    if codecs == {"Speex"}:
        return open_with_libav(file, "ogg", "Speex", limits)
    if len(codecs) > 1 or "Speex" in codecs:
        raise MediaError(
            "unreadable", f"links of several codecs: {', '.join(sorted(map(str, codecs)))}"
        )
    if codecs == {"FLAC"}:
        if len(links) > 1:
            raise MediaError(
                "unreadable", f"FLAC in Ogg with a second link at byte {links[1].start}"
            )
        flac = ogg.native_flac(links[0].sound(), data)
        stream = _open_flac(io.BytesIO(flac), 0, limits)
    else:
        parts = [(link.start, io.BytesIO(link.sound_file(data))) for link in links]
        stream = open_joined(parts)
    stream.notes += notes
    return stream


def _open_mp3(file: BinaryIO, limits: Limits) -> SoundStream:
    """Open an MP3; each of several joined files by itself."""
    file.seek(0)
    data = file.read()
    mp3 = read_parts(data)
    if is_layer_2(data, mp3.parts[0]):
        return open_with_libav(file, "mp3", "MPEG layer II", limits)
    parts = [(part.start, io.BytesIO(mended_part(data, part, mp3))) for part in mp3.parts]
    stream = open_joined(parts)
    stream.notes += mp3.notes
    return stream


def _check_stream(stream: SoundStream, options: DecodeOptions) -> None:
    """Raise MediaError for a sound that is known to be too large before a sample is read."""
    limit = options.limits.max_bytes
    if not 1 <= stream.channels <= 255:
        raise MediaError("over the limit", f"a sound of {stream.channels} channels")
    if not 1 <= stream.rate < 1 << 31:
        raise MediaError("unreadable", f"{stream.rate} samples a second")
    if stream.frames is not None:
        if stream.frames * stream.channels * 2 > limit:
            raise MediaError(
                "over the limit", f"a sound of {stream.frames} frames of {stream.channels} channels"
            )
        _check_size(stream.frames, stream, options)
    rate = options.audio_rate or stream.rate
    common = math.gcd(stream.rate, rate)
    old, new = stream.rate // common, rate // common
    width = 6 * old // min(old, new)  # of the filter, at torchaudio's default
    if (2 * width + old) * new > MAX_RESAMPLING_TAPS:
        raise MediaError(
            "over the limit",
            f"{stream.rate} samples a second have too little in common with {rate}",
        )


def _check_size(frames: int, stream: SoundStream, options: DecodeOptions) -> None:
    """Raise MediaError where the mixed and resampled sound would be too large."""
    rate = options.audio_rate or stream.rate
    size = frames * rate // stream.rate * (options.audio_channels or stream.channels) * 2
    if size > options.limits.max_bytes:
        raise MediaError("over the limit", f"a sound of {size} bytes at {rate} samples a second")
