"""Reading of MP4, WebM, WMA, AAC and AMR by PyAV, which carries FFmpeg (the extra `media`).

Of several streams the first sound is read. FFmpeg drops the encoder's delay and padding where the
container states them; what the container's duration cuts off the last packet is dropped here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bytelm.modalities.audio_files.boxes import check_boxes
from bytelm.modalities.audio_files.stream import Block, SoundStream
from bytelm.modalities.base import Limits, MediaError

if TYPE_CHECKING:
    import av
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

DEMUXERS = {
    re.compile(pattern, re.DOTALL): names
    for pattern, names in {
        rb"....(?:ftyp|moov|mdat|wide|free|skip)": ("mov", "MP4"),
        rb"\x1a\x45\xdf\xa3": ("matroska", "WebM or Matroska"),
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": ("asf", "WMA"),
        rb"\xff[\xf0\xf1\xf8\xf9]": ("aac", "AAC"),
        rb"#!AMR": ("amr", "AMR"),
    }.items()
}
"""FFmpeg's demuxer and the format's usual name, by the first bytes."""

OTHER_STREAMS = "other streams left out"
GAPS = "gaps in time closed"
GAP_SECONDS = 0.5
SHORT_SECONDS = 0.25
"""Seconds by which a stated duration, which some programs round, may be more than the samples."""


def open_with_libav(file: BinaryIO, demuxer: str, kind: str, limits: Limits) -> SoundStream:
    """Open the first sound of a file.

    Args:
        demuxer: FFmpeg's demuxer for the format; no other may read the file.
        kind: the format's usual name, for messages.
    Raises:
        MediaError: PyAV is missing, or the file is cut or broken.
    """
    try:
        import av
    except ImportError as error:
        raise MediaError(
            "needs bytelm[media]", f"{kind} is read by PyAV: pip install 'bytelm[media]'"
        ) from error
    notes = check_boxes(file, demuxer)
    file.seek(0)
    try:
        container = av.open(file, "r", format=demuxer, metadata_errors="replace")
    except av.FFmpegError as error:
        raise _refusal(error) from error
    if not container.streams.audio:
        container.close()
        raise MediaError("no sound", f"{kind} without a sound")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        container.close()
        raise MediaError("unreadable", f"{kind} with a codec that FFmpeg does not know")
    stream.codec_context.thread_count = 1
    rate, channels = stream.rate or 0, stream.channels or 0
    expected = _stated_frames(container, stream, demuxer)
    if expected and expected * channels * 2 > limits.max_bytes:
        container.close()
        raise MediaError("over the limit", f"a sound of {expected} frames of {channels} channels")
    sound = SoundStream(rate, channels, None, iter(()), notes=notes)
    sound.is_float = stream.codec_context.name.startswith("pcm_f")
    if len(container.streams) > 1:
        sound.notes.append(OTHER_STREAMS)
    sound.blocks = _read_blocks(container, stream, sound, expected, is_exact=demuxer == "mov")
    return sound


def _stated_frames(container: InputContainer, stream: AudioStream, demuxer: str) -> int | None:
    """Frames by the duration of the stream; None where only the container's is known or none."""
    if stream.duration and stream.time_base and demuxer == "mov":
        return round(stream.duration * stream.time_base * stream.rate)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * stream.rate)
    except ValueError:
        return None


def _read_blocks(
    container: InputContainer,
    stream: AudioStream,
    sound: SoundStream,
    expected: int | None,
    is_exact: bool,
) -> Iterator[Block]:
    """Blocks of all packets; MediaError where one is damaged, or where they are too few."""
    import av

    read, next_time = 0, None
    try:
        with container:
            for frame in _frames(container, stream):
                if (frame.sample_rate, len(frame.layout.channels)) != (sound.rate, sound.channels):
                    raise MediaError("unreadable", "rate or channels change inside the sound")
                next_time = _check_time(frame, next_time, sound)
                block = _samples(frame)
                if is_exact and expected and read + len(block) > expected:
                    block = block[: max(0, expected - read)]
                read += len(block)
                if len(block):
                    yield block
    except av.FFmpegError as error:
        raise _refusal(error) from error
    if expected and read + SHORT_SECONDS * sound.rate < expected:
        raise MediaError("truncated", f"{read} frames where the header says {expected}")
    if not read:
        raise MediaError("empty", "a sound of 0 frames")


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise MediaError("truncated", f"the packet at byte {packet.pos} is cut")
        yield from packet.decode()


def _check_time(frame: AudioFrame, expected: float | None, sound: SoundStream) -> float | None:
    """Note a gap before a frame; returns the time in seconds at which the next should begin."""
    if frame.time is None:
        return None
    if expected is not None and frame.time > expected + GAP_SECONDS and GAPS not in sound.notes:
        sound.notes.append(GAPS)
    return float(frame.time) + frame.samples / frame.sample_rate


def _samples(frame: AudioFrame) -> Block:
    """[m c] samples of a frame, as blocks have them."""
    if frame.format.name.startswith("s64"):
        raise MediaError("unreadable", "samples of 64 bits")
    samples: Any = frame.to_ndarray()  # [c m], or [1 m·c] where the format is packed
    channels = len(frame.layout.channels)
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.int16) - 128) << 8
    return samples if samples.dtype in (np.int16, np.int32) else samples.astype(np.float32)


def _refusal(error: av.FFmpegError) -> MediaError:
    """The refusal for FFmpeg's error; raises MemoryError where memory was short."""
    if isinstance(error, MemoryError):
        raise MemoryError(str(error)) from error
    return MediaError("damaged", error.strerror or type(error).__name__)
