"""Decoding of sound files to 16-bit PCM.

n frames (one sample of each channel)    c channels
"""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from bytelm.modalities.audio_containers import check_container, mp3_states_length
from bytelm.modalities.base import DecodeOptions, Limits, MediaError

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF")
"""Formats that may be opened, by libsndfile's names."""

UNKNOWN_FRAMES = 1 << 62  # libsndfile's number of frames for a FLAC header without a length
MAX_RESAMPLING_TAPS = 1 << 24
BLOCK_FRAMES = 1 << 18
"""Frames that are converted at once, which bounds memory."""
VORBIS_FULL_SCALE = 32767  # libsndfile scales Ogg by this, and integers by 32768
FULL_SCALE = 32768

Pcm = npt.NDArray[np.int16]


def decode_sound(file: BinaryIO, options: DecodeOptions) -> tuple[Pcm, int]:
    """Decode an open sound file.

    Returns:
        its samples [n c], and their number a second in each channel.
    Raises:
        MediaError: the file is broken, too large or of a kind that is not allowed.
    """
    try:
        return _decode_pcm(file, options)
    except soundfile.LibsndfileError as error:
        detail = " ".join(error.error_string.split()) or f"libsndfile's error {error.code}"
        raise MediaError("unreadable", detail) from error


def to_pcm(samples: npt.NDArray[np.floating], scale: int) -> Pcm:
    """Convert floating-point samples to 16 bits, clipped to full scale."""
    pcm = np.empty(samples.shape, np.int16)
    for first in range(0, len(samples), BLOCK_FRAMES):
        block = slice(first, first + BLOCK_FRAMES)
        scaled = np.rint(samples[block] * samples.dtype.type(scale))
        pcm[block] = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1)
    return pcm


def _decode_pcm(file: BinaryIO, options: DecodeOptions) -> tuple[Pcm, int]:
    """Samples [n c] and rate, read only if the header passes all checks."""
    if options.audio_channels not in (None, 1):
        raise ValueError(
            f"audio_channels is {options.audio_channels}; choose 1 (mixed down to mono) or None "
            "(the file's own)"
        )
    check_container(file, options.limits.max_bytes)
    file.seek(0)
    with soundfile.SoundFile(file) as sound:
        _check_header(sound, options.limits)
        source_rate = sound.samplerate
        rate = options.audio_rate or source_rate
        if rate != source_rate:
            _check_resampling(sound, rate, options)
        try:
            pcm = _read_frames(sound)
        except soundfile.LibsndfileError as error:
            if file.read(1):
                raise
            raise MediaError("truncated", "the file ends inside its samples") from error
    if len(pcm) < sound.frames and _states_length(sound, file):
        raise MediaError("truncated", f"{len(pcm)} frames where the header says {sound.frames}")
    mix = options.audio_channels == 1 and pcm.shape[1] > 1
    if not mix and rate == source_rate:
        return pcm, rate
    samples = pcm.astype(np.float32)
    del pcm
    samples /= np.float32(FULL_SCALE)
    if mix:
        samples = samples.mean(axis=1, keepdims=True, dtype=np.float32)
    if rate != source_rate:
        samples = _resample(samples, source_rate, rate)
    return to_pcm(samples, FULL_SCALE), rate


def _check_header(sound: soundfile.SoundFile, limits: Limits) -> None:
    if sound.format not in FORMATS:
        raise MediaError("unknown kind", f"a sound file of format {sound.format}")
    if not sound.frames:
        raise MediaError("empty", "a sound of 0 frames")
    if not 1 <= sound.channels <= 255:
        raise MediaError("over the limit", f"a sound of {sound.channels} channels")
    if not 1 <= sound.samplerate < 1 << 31:
        raise MediaError("unreadable", f"{sound.samplerate} samples a second")
    if sound.frames >= UNKNOWN_FRAMES:
        raise MediaError("unreadable", "the header does not say how long the sound is")
    if sound.frames * sound.channels * 2 > limits.max_bytes:
        raise MediaError(
            "over the limit", f"a sound of {sound.frames} frames of {sound.channels} channels"
        )


def _read_frames(sound: soundfile.SoundFile) -> Pcm:
    """All samples [n c], in one read: soundfile seeks after each, which alters those of an MP3."""
    wide = sound.format == "OGG" or sound.subtype in ("FLOAT", "DOUBLE")
    if sound.format in ("MP3", "OGG"):
        sound.seek(0)  # as soundfile.read does; without it a few last bits of an MP3 differ
    samples = sound.read(dtype="float32" if wide else "int16", always_2d=True)
    if not len(samples):
        raise MediaError("truncated", "the file ends before its samples")
    if not wide:
        return samples
    if not np.isfinite(samples).all():
        raise MediaError("unreadable", "samples that are not finite numbers")
    # As integers, libsndfile lets Ogg wrap around at full scale, and does not scale the others.
    return to_pcm(samples, VORBIS_FULL_SCALE if sound.format == "OGG" else FULL_SCALE)


def _states_length(sound: soundfile.SoundFile, file: BinaryIO) -> bool:
    """Whether `sound.frames` comes from the header and is no guess."""
    return sound.format != "MP3" or mp3_states_length(file)


def _check_resampling(sound: soundfile.SoundFile, rate: int, options: DecodeOptions) -> None:
    """Raise MediaError where the resampled sound, or the filter for it, would be too large."""
    channels = options.audio_channels or sound.channels
    size = sound.frames * rate // sound.samplerate * channels * 2
    if size > options.limits.max_bytes:
        raise MediaError("over the limit", f"a sound of {size} bytes at {rate} samples a second")
    common = math.gcd(sound.samplerate, rate)
    old, new = sound.samplerate // common, rate // common
    width = 6 * old // min(old, new)  # of the filter, at torchaudio's default
    if (2 * width + old) * new > MAX_RESAMPLING_TAPS:
        raise MediaError(
            "over the limit",
            f"{sound.samplerate} samples a second have too little in common with {rate}",
        )


def _resample(samples: npt.NDArray[np.float32], old: int, new: int) -> npt.NDArray[np.float32]:
    """Resample [n c] from an old to a new rate, with one thread: the same on any machine.

    Raises MemoryError where torch cannot allocate.
    """
    import torch
    from torchaudio.functional import resample

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return (
            resample(torch.from_numpy(np.ascontiguousarray(samples.T)), old, new)
            .T.contiguous()
            .numpy()
        )
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        raise
    finally:
        torch.set_num_threads(threads)
