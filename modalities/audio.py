"""Sounds: 16-bit PCM, little-endian, channels interleaved.

n frames (one sample of each channel)    c channels
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt
import soundfile

from bytelm.modalities.audio_files.decode import decode_sound
from bytelm.modalities.audio_files.reduction import FULL_SCALE, Pcm, to_pcm
from bytelm.modalities.audio_head import AudioHead
from bytelm.modalities.base import (
    FILE_VIEW,
    Bytes,
    DecodeOptions,
    Header,
    Modality,
    Sample,
)
from bytelm.modalities.raw_files import RAW_SUFFIX, raw_payload, raw_sample, write_raw

SIGNATURES = {
    "wav": rb"(?:RIFF|RIFX|RF64)....WAVE",
    "flac": rb"fLaC[\0\x80]\0\0\x22",
    "ogg": rb"OggS\0",
    "mp3": rb"ID3[\x02-\x04]\0|\0{,64}\xff[\xe2\xe3\xf2-\xf5\xfa-\xfd][^\xf0-\xff]",
    "aiff": rb"FORM....AIF[FC]",
    "w64": rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0",
    "caf": rb"caff\0[\1\2]",
    "au": rb"\.snd\0\0..",
    "m4a": rb"....ftyp(?!av[ci][fis]|mi[af]|msf1|he[iv]|jp[2x] |crx )|\0...(?:moov|mdat|wide|free)",
    "webm": rb"\x1a\x45\xdf\xa3",
    "wma": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c",
    "aac": rb"\xff[\xf0\xf1\xf8\xf9][\x40-\xff]",
    "amr": rb"#!AMR(?:-WB)?\n",
}
"""Regular expressions for the first bytes of a file, by suffix."""

FLAC_MAX_CHANNELS = 8
FLAC_MAX_RATE = 655_350

_SIGNATURE = re.compile(b"|".join(b"(?:%b)" % s for s in SIGNATURES.values()), re.DOTALL)


class Audio(Modality):
    """Sound files that libsndfile reads, and by PyAV the sound of MP4, WebM, WMA, AAC, AMR."""

    name = "audio"
    code = 2
    som = 261
    views = ("s16le", "s16be", "u8", "mulaw", "s24be")
    plain_views = ("s16le", "s24be")
    value_bytes = (2, 3)
    view_value_bytes: ClassVar = {"s16le": 2, "s16be": 2, "u8": 1, "mulaw": 1, "s24be": 3}
    header_format = ">IB"
    header_fields = ("rate", "channels")
    head = AudioHead
    suffixes = ("wav", "flac")

    def recognises(self, start: bytes) -> bool:
        return _SIGNATURE.match(start) is not None

    def decode_file(self, file: BinaryIO, options: DecodeOptions) -> Sample:
        sound = decode_sound(file, options)
        header = Header(channels=sound.samples.shape[1], rate=sound.rate)
        if options.keep_files:
            file.seek(0)
            return raw_sample(self.name, header, file.read())
        return Sample(self.name, header, sound.data(), notes=sound.notes, is_deep=sound.is_deep)

    def member_suffix(self, sample: Sample) -> str:
        if sample.is_file:
            return RAW_SUFFIX
        return "pcm24" if sample.is_deep else "pcm"

    def write_file(self, sample: Sample, stem: Path, suffix: str | None = None) -> Path:
        """Write a sample as a WAV or FLAC of 16 or 24 bits, a raw file as it is.

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
        subtype = "PCM_24" if sample.is_deep else "PCM_16"
        soundfile.write(path, frames(sample), sample.header.rate, subtype, format=kind.upper())
        return path

    def to_view(self, sample: Sample, view: str, patch: int) -> Bytes:
        self.view_code(view)
        raw = raw_payload(sample, view)
        if raw is not None:
            return raw
        if self.is_plain(view, sample.is_deep):
            return np.frombuffer(sample.data, np.uint8)
        if view == "s24be":
            return np.frombuffer(_widened(sample.data), np.uint8)
        pcm = np.frombuffer(_narrowed(sample.data) if sample.is_deep else sample.data, "<i2")
        if view == "s16be":
            return pcm.astype(">i2").view(np.uint8)
        if view == "u8":
            return ((pcm >> 8) + 128).astype(np.uint8)
        if view == "mulaw":
            return _mulaw_codes()[pcm.view("<u2")]
        return pcm.view(np.uint8)

    def from_view(self, header: Header, payload: Bytes, view: str, patch: int) -> Sample:
        """The sample of a whole payload; ValueError where it ends inside a frame."""
        self.view_code(view)
        if view == FILE_VIEW:
            return raw_sample(self.name, header, payload.tobytes())
        frame = header.channels * self.view_value_bytes[view]
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
            return Sample(self.name, header, payload.tobytes(), is_deep=view == "s24be")
        return Sample(self.name, header, pcm.tobytes())


def frames(sample: Sample) -> npt.NDArray[np.signedinteger]:
    """[n c] samples of a decoded sound: 16 bits, or 24 bits in the upper part of 32."""
    if not sample.is_deep:
        return np.frombuffer(sample.data, "<i2").reshape(-1, sample.header.channels)
    wide = np.zeros((len(sample.data) // 3, 4), np.uint8)
    wide[:, :3] = np.frombuffer(sample.data, np.uint8).reshape(-1, 3)
    return wide.view(">i4").astype(np.int32).reshape(-1, sample.header.channels)


def _narrowed(deep: bytes) -> bytes:
    """16-bit little-endian samples: the upper bytes of 24-bit big-endian ones."""
    return np.frombuffer(deep, np.uint8).reshape(-1, 3)[:, 1::-1].tobytes()


def _widened(pcm: bytes) -> bytes:
    """24-bit big-endian samples of 16-bit little-endian ones."""
    wide = np.zeros((len(pcm) // 2, 3), np.uint8)
    wide[:, 1::-1] = np.frombuffer(pcm, np.uint8).reshape(-1, 2)
    return wide.tobytes()


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
    return to_pcm(decoded, FULL_SCALE).astype("<i2")
