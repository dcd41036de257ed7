"""Sounds: 16-bit PCM, little-endian, channels interleaved.

n frames (one sample of each channel)    c channels
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from bytelm.modalities.audio_containers import check_container, mp3_states_length
from bytelm.modalities.base import (
    FILE_VIEW,
    Bytes,
    DecodeOptions,
    EvaluationHead,
    Header,
    Limits,
    MediaError,
    Modality,
    Sample,
    ScoredSegment,
    Size,
)
from bytelm.modalities.raw_files import RAW_SUFFIX, raw_payload, raw_sample, write_raw

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF")
"""Formats that may be opened, by libsndfile's names."""

SIGNATURES = {
    "wav": rb"RIFF....WAVE",
    "flac": rb"fLaC[\0\x80]\0\0\x22",
    "ogg": rb"OggS\0",
    "mp3": rb"ID3[\x02-\x04]\0|\xff[\xe2\xe3\xf2\xf3\xfa\xfb][^\xf0-\xff]",
    "aiff": rb"FORM....AIF[FC]",
}
"""Regular expressions for the first bytes of a file, by suffix."""

WIDE_VIEWS = ("s16le", "s16be")
"""Views with two bytes for a sample; the others have one."""

UNKNOWN_FRAMES = 1 << 62  # libsndfile's number of frames for a FLAC header without a length
MAX_RESAMPLING_TAPS = 1 << 24
BLOCK_FRAMES = 1 << 18
"""Frames that are converted at once, which bounds memory."""
VORBIS_FULL_SCALE = 32767  # libsndfile scales Ogg by this, and integers by 32768
FULL_SCALE = 32768
FLAC_MAX_CHANNELS = 8
FLAC_MAX_RATE = 655_350

Pcm = npt.NDArray[np.int16]

_SIGNATURE = re.compile(b"|".join(b"(?:%b)" % s for s in SIGNATURES.values()), re.DOTALL)


class AudioHead(EvaluationHead):
    """Bits per byte, and per sample of decoded sounds."""

    def __init__(self) -> None:
        super().__init__()
        self.nats["samples"] = 0.0
        self.counts |= {"wide_bytes": 0, "narrow_bytes": 0}

    def update(self, segment: ScoredSegment) -> None:
        super().update(segment)
        if segment.view == FILE_VIEW:
            return
        self.nats["samples"] += float(segment.payload_nats.sum())
        kind = "wide_bytes" if segment.view in WIDE_VIEWS else "narrow_bytes"
        self.counts[kind] += segment.payload.size

    def metrics(self) -> dict[str, float]:
        samples = self.counts["wide_bytes"] / 2 + self.counts["narrow_bytes"]
        bits = self.nats["samples"] / math.log(2)
        return {**super().metrics(), "bits_per_sample": bits / samples if samples else math.nan}


class Audio(Modality):
    """WAV, FLAC, Ogg (Vorbis, Opus, FLAC), MP3 and AIFF files."""

    name = "audio"
    code = 2
    som = 261
    views = ("s16le", "s16be", "u8", "mulaw")
    plain_views = frozenset({"s16le"})
    header_format = ">IB"
    header_fields = ("rate", "channels")
    head = AudioHead
    suffixes = ("wav", "flac")

    def recognises(self, start: bytes) -> bool:
        return _SIGNATURE.match(start) is not None

    def decode_file(self, file: BinaryIO, options: DecodeOptions) -> Sample:
        try:
            pcm, rate = _decode_pcm(file, options)
        except soundfile.LibsndfileError as error:
            detail = " ".join(error.error_string.split()) or f"libsndfile's error {error.code}"
            raise MediaError("unreadable", detail) from error
        header = Header(channels=pcm.shape[1], rate=rate)
        if options.keep_files:
            file.seek(0)
            return raw_sample(self.name, header, file.read())
        return Sample(self.name, header, pcm.astype("<i2", copy=False).tobytes())

    def member_suffix(self, sample: Sample) -> str:
        return RAW_SUFFIX if sample.is_file else "pcm"

    def write_file(self, sample: Sample, stem: Path, suffix: str | None = None) -> Path:
        """Write a sample as a 16-bit WAV or FLAC, a raw file as it is.

        Raises ValueError for a sound that FLAC cannot hold.
        """
        if sample.is_file:
            return write_raw(sample, stem, SIGNATURES, default=RAW_SUFFIX)
        kind = suffix or self.suffixes[0]
        if kind == "flac" and not fits_flac(sample.header):
            raise ValueError(
                f"FLAC holds no sound of {sample.header.channels} channels and "
                f"{sample.header.rate} Hz: write WAV"
            )
        path = stem.with_name(f"{stem.name}.{kind}")
        pcm = np.frombuffer(sample.data, "<i2").reshape(-1, sample.header.channels)  # [n c]
        soundfile.write(path, pcm, sample.header.rate, subtype="PCM_16", format=kind.upper())
        return path

    def payload_size(self, size: Size, view: str) -> Size:
        self.view_code(view)
        return size if view in WIDE_VIEWS or view == FILE_VIEW else size // 2

    def stored_range(self, view: str, start: int, stop: int) -> tuple[int, int, int] | None:
        if view == "s16be":
            first = start & ~1
            return first, stop + (stop & 1), start - first
        if view in ("u8", "mulaw"):
            return 2 * start, 2 * stop, 0
        return super().stored_range(view, start, stop)

    def to_view(self, sample: Sample, view: str, patch: int) -> Bytes:
        self.view_code(view)
        raw = raw_payload(sample, view)
        if raw is not None:
            return raw
        pcm = np.frombuffer(sample.data, "<i2")
        if view == "s16be":
            return pcm.astype(">i2").view(np.uint8)
        if view == "u8":
            return ((pcm >> 8) + 128).astype(np.uint8)
        if view == "mulaw":
            return _mulaw_codes()[pcm.view("<u2")]
        return np.frombuffer(sample.data, np.uint8)

    def from_view(self, header: Header, payload: Bytes, view: str, patch: int) -> Sample:
        """The sample of a whole payload; ValueError where it ends inside a frame."""
        self.view_code(view)
        if view == FILE_VIEW:
            return raw_sample(self.name, header, payload.tobytes())
        frame = header.channels * (2 if view in WIDE_VIEWS else 1)
        if payload.size % frame:
            raise ValueError(
                f"an audio payload of {payload.size} bytes is no whole number of frames of "
                f"{frame} bytes"
            )
        if view == "s16be":
            pcm = np.frombuffer(payload.tobytes(), ">i2").astype("<i2")
        elif view == "u8":
            pcm = ((payload.astype("<i2") - 128) << 8).astype("<i2")
        elif view == "mulaw":
            pcm = _mulaw_values()[payload]
        else:
            return Sample(self.name, header, payload.tobytes())
        return Sample(self.name, header, pcm.tobytes())


def fits_flac(header: Header) -> bool:
    """Whether FLAC can hold a sound of this many channels and samples a second."""
    return header.channels <= FLAC_MAX_CHANNELS and header.rate <= FLAC_MAX_RATE


@functools.cache
def _mulaw_codes() -> Bytes:
    """[65536] mu-law codes of all samples, by their bits as u16."""
    import torch
    from torchaudio.functional import mu_law_encoding

    samples = np.arange(1 << 16).astype("<u2").view("<i2")
    scaled = torch.from_numpy(samples.astype(np.float64) / FULL_SCALE)
    return mu_law_encoding(scaled, quantization_channels=256).numpy().astype(np.uint8)


@functools.cache
def _mulaw_values() -> Pcm:
    """[256] samples of the mu-law codes."""
    import torch
    from torchaudio.functional import mu_law_decoding

    decoded = mu_law_decoding(torch.arange(256), quantization_channels=256).double().numpy()
    return _to_pcm(decoded, FULL_SCALE).astype("<i2")


def _to_pcm(samples: npt.NDArray[np.floating], scale: int) -> Pcm:
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
    return _to_pcm(samples, FULL_SCALE), rate


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
    return _to_pcm(samples, VORBIS_FULL_SCALE if sound.format == "OGG" else FULL_SCALE)


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
