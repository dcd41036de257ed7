"""Sounds of many containers and codecs, made in memory, and their decoding."""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import numpy as np
import pytest
import soundfile

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, MediaError, Sample

AUDIO = MODALITIES["audio"]
DEFAULTS = DecodeOptions()
RATE = 16_000


def tone(frames: int = 20_000, channels: int = 2, loudness: float = 0.5) -> np.ndarray:
    """[n c] samples of a tone with a little noise."""
    time = np.arange(frames)[:, None] / RATE
    noise = np.random.default_rng(0).normal(size=(frames, channels)) * 0.05
    return (loudness * np.sin(2 * np.pi * 440 * time) + noise).astype(np.float32)


def encoded(
    samples: np.ndarray,
    kind: str = "WAV",
    subtype: str = "PCM_16",
    rate: int = RATE,
    **options: object,
) -> bytes:
    """A sound file that libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype, **options)
    return file.getvalue()


def media(
    container: str,
    streams: dict[str, np.ndarray],
    rate: int = 48_000,
    options: dict[str, str] | None = None,
) -> bytes:
    """A file that FFmpeg writes: samples [n c] of full scale 1 by codec; `mpeg4` is a video."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        tracks = []
        for codec, samples in streams.items():
            if codec == "mpeg4":
                track = output.add_stream(codec, rate=10)
                track.width = track.height = 64
                track.pix_fmt = "yuv420p"
            else:
                layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
                track = output.add_stream(codec, rate=rate, layout=layout)
                if codec.startswith("wma"):
                    track.bit_rate = 128_000
            tracks.append((track, samples))
        for track, samples in tracks:
            frames = _frames(track, samples, rate) if track.type == "audio" else _pictures()
            for frame in [*frames, None]:
                for packet in track.encode(frame):
                    output.mux(packet)
    return file.getvalue()


def _frames(track: object, samples: np.ndarray, rate: int) -> list[object]:
    """Frames as the encoder takes them."""
    import av

    context = track.codec_context
    if not context.is_open:
        context.open()
    size = context.frame_size or 1024
    resampler = av.AudioResampler(format=context.format.name, layout=track.layout, rate=rate)
    frames: list[object] = []
    for first in range(0, len(samples), size):
        block = np.ascontiguousarray(samples[first : first + size].T.astype(np.float32))
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=track.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        frames += resampler.resample(frame)
    return frames


def _pictures() -> list[object]:
    import av

    pictures = []
    for index in range(10):
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), format="rgb24")
        picture.pts = index
        pictures.append(picture)
    return pictures


def chunk(name: bytes, data: bytes, size: int | None = None, order: str = "<") -> bytes:
    """A chunk of a RIFF file, whose stated size may be another."""
    stated = struct.pack(f"{order}I", len(data) if size is None else size)
    return name + stated + data + bytes(len(data) % 2)


def wave_format(tag: int = 1, channels: int = 1, bits: int = 16, order: str = "<") -> bytes:
    """The chunk `fmt ` of a WAV."""
    frame = channels * bits // 8
    fields = (tag, channels, RATE, RATE * frame, frame, bits)
    return chunk(b"fmt ", struct.pack(f"{order}HHIIHH", *fields), order=order)


def riff(body: bytes, size: int | None = None, kind: bytes = b"RIFF") -> bytes:
    """A RIFF file of kind WAVE around chunks."""
    order = ">" if kind == b"RIFX" else "<"
    return kind + struct.pack(f"{order}I", len(body) + 4 if size is None else size) + b"WAVE" + body


def decode(data: bytes, options: DecodeOptions = DEFAULTS) -> Sample:
    """The sample of a file that is recognised as a sound."""
    assert AUDIO.recognises(data[:4096])
    return AUDIO.decode_file(io.BytesIO(data), options)


def pcm(sample: Sample) -> np.ndarray:
    """[n c] samples of 16 bits."""
    assert not sample.is_deep
    return np.frombuffer(sample.data, "<i2").reshape(-1, sample.header.channels)


def refusal(data: bytes, options: DecodeOptions = DEFAULTS) -> MediaError:
    """The error that refuses a file."""
    with pytest.raises(MediaError) as error:
        AUDIO.decode_file(io.BytesIO(data), options)
    return error.value
