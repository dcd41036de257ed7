"""From samples as wide as the file has them to 16 bits, or to 24 where the depth is kept.

    integers of b bits    x -> floor(x / 2^(b-16))
    floats                x -> round(32768 x), clipped; with full scale 2^(k-1) - 1 in place of 1
                          where they were written as integers of k bits

Samples of 24 bits are held as int32 whose low byte is 0.

n frames (one sample of each channel)    c channels
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.modalities.audio_files.stream import BLOCK_FRAMES, FULL_SCALE, Block, SoundStream
from bytelm.modalities.base import MediaError

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
Samples = npt.NDArray[np.int16] | npt.NDArray[np.int32]
"""[n c] samples of 16 bits, or of 24 bits in the upper part of 32."""
Floats = npt.NDArray[np.float32]


def reduce_stream(stream: SoundStream, limit: int, keep_depth: bool) -> tuple[Samples, list[str]]:
    """Read a stream to its end.

    Args:
        limit: bytes of the samples of 16 bits.
        keep_depth: give samples of 24 bits where the file has more than 16.
    Returns:
        samples [n c], and notes on what they lost.
    Raises:
        MediaError: the samples are over the limit, or are no sound.
    """
    if stream.is_float:
        return _reduce_floats(_joined(stream.blocks, limit // 2), keep_depth)
    low_bits = 0

    def reduced() -> Iterator[Samples]:
        nonlocal low_bits
        for block in stream.blocks:
            if block.dtype == np.int16:
                yield block
            elif block.dtype == np.int32:
                low_bits |= int(np.bitwise_or.reduce(block, axis=None)) & 0xFFFF
                yield block.copy() if keep_depth else _upper_bits(block)
            else:
                _check_finite(block)
                yield to_pcm(block, stream.float_scale)

    samples = _joined(reduced(), limit // 2)
    if keep_depth and samples.dtype == np.int32:
        if not low_bits:
            return _upper_bits(samples), []
        samples &= np.int32(~0xFF)
        return samples, ["32 bits kept as 24"] if low_bits & 0xFF else []
    return samples, [f"{32 if low_bits & 0xFF else 24} bits kept as 16"] if low_bits else []


def to_pcm(samples: npt.NDArray[np.floating], scale: float) -> Pcm:
    """Convert floating-point samples to 16 bits, clipped to full scale."""
    pcm = np.empty(samples.shape, np.int16)
    for first in range(0, len(samples), BLOCK_FRAMES):
        block = slice(first, first + BLOCK_FRAMES)
        scaled = np.rint(samples[block] * samples.dtype.type(scale))
        pcm[block] = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1)
    return pcm


def to_deep_pcm(samples: Floats, scale: float) -> npt.NDArray[np.int32]:
    """Convert floating-point samples to 24 bits, clipped; the scale is that to 16 bits."""
    pcm = np.empty(samples.shape, np.int32)
    for first in range(0, len(samples), BLOCK_FRAMES):
        block = slice(first, first + BLOCK_FRAMES)
        scaled = np.rint(samples[block] * np.float32(scale * 256))
        pcm[block] = np.clip(scaled, -(1 << 23), (1 << 23) - 1)
    pcm <<= 8
    return pcm


def to_floats(samples: Samples) -> Floats:
    """[n c] samples of full scale 1."""
    floats = samples.astype(np.float32)
    floats /= np.float32(FULL_SCALE if samples.dtype == np.int16 else 1 << 31)
    return floats


def choose_mix(samples: Samples) -> tuple[int | None, list[str]]:
    """How to mix [n c] samples to mono, and notes.

    Where the channels cancel out, as the two of a balanced line do, the first that is not nearly
    silent is kept in place of their mean.

    Returns:
        the channel to keep, or None for the mean of all.
    """
    power, mean_power = np.zeros(samples.shape[1]), 0.0
    for block in _blocks(samples):
        floats = to_floats(block)
        power += np.square(floats, dtype=np.float64).sum(axis=0)
        mean_power += float(np.square(mixed(floats, None), dtype=np.float64).sum())
    if mean_power >= CANCELLED * power.mean():
        return None, []
    return int(np.argmax(power >= power.mean() / 2)), [CANCEL_NOTE]


def mixed(samples: Floats, channel: int | None) -> Floats:
    """[n 1] one channel of [n c], or with None the mean of all."""
    if channel is None:
        return samples.mean(axis=1, keepdims=True, dtype=np.float32)
    return samples[:, channel : channel + 1]


def _upper_bits(samples: Block) -> Pcm:
    """The upper 16 bits of integers of 32."""
    return (samples >> 16).astype(np.int16)


def _blocks(samples: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Blocks of BLOCK_FRAMES, so that copies of them take little memory."""
    for first in range(0, len(samples), BLOCK_FRAMES):
        yield samples[first : first + BLOCK_FRAMES]


def _joined(blocks: Iterator[npt.NDArray[Any]], limit: int) -> npt.NDArray[Any]:
    """Blocks as one array; MediaError where they have over `limit` samples, or where none is."""
    kept: list[npt.NDArray[Any]] = []
    size = 0
    for block in blocks:
        size += block.size
        if size > limit:
            raise MediaError("over the limit", f"a sound of over {limit} samples")
        kept.append(block)
    if not kept:
        raise MediaError("empty", "a sound of 0 frames")
    return kept[0] if len(kept) == 1 else np.concatenate(kept)


def _check_finite(block: npt.NDArray[np.floating]) -> None:
    if not np.isfinite(block).all():
        raise MediaError("unreadable", "samples that are not finite numbers")


def _reduce_floats(samples: Floats, keep_depth: bool) -> tuple[Samples, list[str]]:
    """Samples of a file of floats, whose range may be that of integers."""
    _check_finite(samples)
    peak = max(float(np.abs(block).max()) for block in _blocks(samples))
    scale: float = FULL_SCALE
    notes = [CLIPPED_NOTE] if peak > 1 else []
    if peak > LOUD:
        bits = _integer_bits(samples, peak)
        scale, notes = FULL_SCALE / 2 ** (bits - 1), [f"scaled from +-{2 ** (bits - 1) - 1}"]
    reduced: Samples = to_pcm(samples, scale)
    kept_bits = 16
    if keep_depth and _is_rounded(samples, scale):
        reduced, scale, kept_bits = to_deep_pcm(samples, scale), scale * 256, 24
    if _is_rounded(samples, scale):
        notes.append(f"floating point kept as {kept_bits} bits")
    return reduced, notes


def _integer_bits(samples: Floats, peak: float) -> int:
    """Bits of the integers that loud floats were made of; MediaError where they look like none."""
    bits = next((b for b in INTEGER_BITS if peak <= 2 ** (b - 1)), None)
    outside = sum(np.count_nonzero(np.abs(block) > 1) for block in _blocks(samples))
    if bits is None or peak < INTEGER_PEAK or outside < np.count_nonzero(samples) / 2:
        raise MediaError(
            "unreadable",
            f"floating-point samples up to {peak:.4g} where full scale is 1: normalise them",
        )
    return bits


def _is_rounded(samples: Floats, scale: float) -> bool:
    """Whether floats at a scale are no whole numbers."""
    scaled = (block * np.float32(scale) for block in _blocks(samples))
    return any((block != np.rint(block)).any() for block in scaled)
