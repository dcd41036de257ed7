"""From samples as wide as the file has them to 16 bits, and the mix to mono.

    integers of b bits    x -> floor(x / 2^(b-16))
    floats                x -> round(32768 x), clipped; with full scale 2^(k-1) - 1 in place of 1
                          where they were written as integers of k bits

n frames (one sample of each channel)    c channels
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.modalities.audio_stream import BLOCK_FRAMES, FULL_SCALE, SoundStream
from bytelm.modalities.base import MediaError

FLOAT_NOTE = "floating point kept as 16 bits"
CLIPPED_NOTE = "clipped at full scale"
CANCEL_NOTE = "channels cancel out: the first is kept"

LOUD = 4.0
"""Floats up to this many times full scale are clipped, as a player does."""
INTEGER_PEAK = 256.0
"""Floats whose peak is above this were written as integers."""
INTEGER_BITS = (16, 24, 32)
CANCELLED = 1e-3
"""Power of the mix, as a share of the channels' mean power, below which they cancel out."""

Pcm = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]


def reduce_to_16_bits(stream: SoundStream, limit: int) -> tuple[Pcm, list[str]]:
    """Read a stream to its end.

    Returns:
        samples [n c], and notes on what they lost.
    Raises:
        MediaError: the samples take over `limit` bytes, or are no sound.
    """
    if stream.is_float:
        return _reduce_floats(_collect_floats(stream, 2 * limit))
    pcm = bytearray()
    low_bits = 0
    for block in stream.blocks:
        if block.dtype == np.int32:
            low_bits |= int(np.bitwise_or.reduce(block, axis=None)) & 0xFFFF
            block = (block >> 16).astype(np.int16)
        elif block.dtype != np.int16:
            _check_finite(block)
            block = to_pcm(block, stream.float_scale)
        _append(pcm, block, limit)
    notes = [f"{32 if low_bits & 0xFF else 24} bits kept as 16"] if low_bits else []
    return np.frombuffer(pcm, np.int16).reshape(-1, stream.channels), notes


def to_pcm(samples: npt.NDArray[np.floating], scale: float) -> Pcm:
    """Convert floating-point samples to 16 bits, clipped to full scale."""
    pcm = np.empty(samples.shape, np.int16)
    for first in range(0, len(samples), BLOCK_FRAMES):
        block = slice(first, first + BLOCK_FRAMES)
        scaled = np.rint(samples[block] * samples.dtype.type(scale))
        pcm[block] = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1)
    return pcm


def mix_to_mono(samples: Floats) -> tuple[Floats, list[str]]:
    """[n 1] mean of the channels of [n c], and notes.

    Where the channels cancel out, as the two of a balanced line do, the first that is not nearly
    silent is kept in place of their mean.
    """
    mono = samples.mean(axis=1, keepdims=True, dtype=np.float32)
    power = np.array([_power(samples[:, channel]) for channel in range(samples.shape[1])])
    if _power(mono[:, 0]) >= CANCELLED * power.mean() or not power.any():
        return mono, []
    first = int(np.argmax(power >= power.mean() / 2))
    return samples[:, first : first + 1], [CANCEL_NOTE]


def _power(samples: Floats) -> float:
    """Mean square of the samples."""
    squares = (np.square(block, dtype=np.float64).sum() for block in _blocks(samples))
    return float(sum(squares)) / max(1, len(samples))


def _blocks(samples: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Blocks of BLOCK_FRAMES, so that copies of them take little memory."""
    for first in range(0, len(samples), BLOCK_FRAMES):
        yield samples[first : first + BLOCK_FRAMES]


def _collect_floats(stream: SoundStream, limit: int) -> Floats:
    """All samples [n c] of a stream."""
    collected = bytearray()
    for block in stream.blocks:
        _check_finite(block)
        _append(collected, block, limit)
    return np.frombuffer(collected, np.float32).reshape(-1, stream.channels)


def _append(collected: bytearray, block: npt.NDArray[Any], limit: int) -> None:
    if len(collected) + block.nbytes > limit:
        raise MediaError("over the limit", f"a sound of over {limit} bytes")
    collected += np.ascontiguousarray(block).data.cast("B")


def _check_finite(block: npt.NDArray[np.floating]) -> None:
    if not np.isfinite(block).all():
        raise MediaError("unreadable", "samples that are not finite numbers")


def _reduce_floats(samples: Floats) -> tuple[Pcm, list[str]]:
    """Samples of a file of floats, whose range may be that of integers."""
    peak = max(float(np.abs(block).max()) for block in _blocks(samples))
    if peak <= LOUD:
        pcm = to_pcm(samples, FULL_SCALE)
        notes = [FLOAT_NOTE] if _is_rounded(samples, pcm) else []
        return pcm, [CLIPPED_NOTE, *notes] if peak > 1 else notes
    bits = next((b for b in INTEGER_BITS if peak <= 2 ** (b - 1)), None)
    sounding = np.count_nonzero(samples)
    outside = sum(np.count_nonzero(np.abs(block) > 1) for block in _blocks(samples))
    if bits is None or peak < INTEGER_PEAK or outside < sounding / 2:
        raise MediaError(
            "unreadable",
            f"floating-point samples up to {peak:.4g} where full scale is 1: normalise them",
        )
    return to_pcm(samples, FULL_SCALE / 2 ** (bits - 1)), [f"scaled from +-{2 ** (bits - 1) - 1}"]


def _is_rounded(samples: Floats, pcm: Pcm) -> bool:
    """Whether 16 bits are too few for floats within full scale."""
    return any(
        ((block * np.float32(FULL_SCALE)).clip(-FULL_SCALE, FULL_SCALE - 1) != reduced).any()
        for block, reduced in zip(_blocks(samples), _blocks(pcm), strict=True)
    )
