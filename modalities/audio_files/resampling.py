"""Resampling of sounds in chunks, so that a long one needs little memory.

n frames (one sample of each channel)    c channels
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bytelm.modalities.audio_files.reduction import FULL_SCALE, Floats, Samples

CHUNK_FRAMES = 1 << 20
FILTER_WIDTH = 6
"""Zero crossings of the filter on each side of a sample: torchaudio's default."""
ROLLOFF = 0.99
"""The filter's cut-off as a share of half the lower rate: torchaudio's default."""


def resampled(
    floats: Callable[[slice], Floats],
    frames: int,
    rates: tuple[int, int],
    convert: Callable[[Floats, float], Samples],
) -> Samples:
    """A sound at another rate, the same to the last bit as if it were resampled at once.

    Args:
        floats: gives a part [m c] of the sound's frames.
        frames: number of the sound's frames.
        rates: the old and the new rate; the samples are only converted where they are the same.
        convert: to integers, given floats and their scale.
    Returns:
        samples [n c].
    Raises:
        MemoryError: torch cannot allocate.
    """
    common = math.gcd(*rates)
    old, new = rates[0] // common, rates[1] // common
    length = -(-frames * new // old)
    chunk = max(1, CHUNK_FRAMES // old) * old
    reach = math.ceil(FILTER_WIDTH * old / (min(old, new) * ROLLOFF))
    margin = -(-reach // old) * old + old
    resample = _resampler(old, new)
    samples: Samples | None = None
    for first in range(0, max(1, frames - chunk + 1), chunk):
        # The last part has one or two chunks: torch rounds otherwise in a short one.
        is_last = first + 2 * chunk > frames
        start = max(0, first - margin)
        part = resample(floats(slice(start, frames if is_last else first + chunk + margin)))
        skipped = (first - start) // old * new
        at = first // old * new
        count = length - at if is_last else chunk // old * new
        converted = convert(part[skipped : skipped + count], FULL_SCALE)
        if samples is None:
            samples = np.empty((length, converted.shape[1]), converted.dtype)
        samples[at : at + count] = converted
    assert samples is not None, "a sound has frames"
    return samples


def _resampler(old: int, new: int) -> Callable[[Floats], Floats]:
    """Resampling of [n c] with one thread: the same on any machine."""
    if old == new:
        return lambda floats: floats
    import torch
    from torchaudio.transforms import Resample

    kernel = Resample(
        old, new, lowpass_filter_width=FILTER_WIDTH, rolloff=ROLLOFF, dtype=torch.float32
    )

    def resample(floats: Floats) -> Floats:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            waves = torch.from_numpy(np.ascontiguousarray(floats.T))
            return kernel(waves).T.contiguous().numpy()
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        finally:
            torch.set_num_threads(threads)

    return resample
