"""Files of other kinds that a script makes: plots, fractals, tones and noise, always the same."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator

import numpy as np
import PIL.Image
import PIL.ImageDraw

SEED = 27
PLOT_SIZE = (240, 180)
RATE = 22_050
"""Samples per second."""
NOTES = (220.0, 246.9, 277.2, 293.7, 329.6, 370.0, 415.3, 440.0)
"""Frequencies in Hz, a scale of A major."""


def plots(count: int = 4) -> Iterator[tuple[str, bytes]]:
    """Line charts with axes, a grid and labels, as PNG."""
    rng = np.random.default_rng(SEED)
    width, height = PLOT_SIZE
    left, bottom = 34, height - 22
    for number in range(count):
        image = PIL.Image.new("RGB", PLOT_SIZE, "white")
        draw = PIL.ImageDraw.Draw(image)
        draw.text((width // 2 - 30, 4), f"run {number + 1}: loss", fill="black")
        for line in range(6):
            y = bottom - line * (bottom - 24) // 5
            draw.line((left, y, width - 8, y), fill=(221, 221, 221))
            draw.text((6, y - 6), f"{line / 5:.1f}", fill=(68, 68, 68))
            x = left + line * (width - 8 - left) // 5
            draw.text((x - 6, bottom + 6), str(200 * line), fill=(68, 68, 68))
        for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44))[: 1 + number % 3]:
            steps = np.arange(left, width - 8)
            walk = np.cumsum(rng.normal(0, 2.2, len(steps)))
            levels = np.clip(bottom - 20 - 0.4 * (steps - left) + walk, 26, bottom - 2)
            draw.line(list(zip(steps.tolist(), levels.tolist(), strict=True)), colour, 2)
        draw.rectangle((left, 24, width - 8, bottom), outline="black")
        yield f"plot-{number}.png", _png(image)


def fractals(count: int = 4) -> Iterator[tuple[str, bytes]]:
    """Views of the Mandelbrot set coloured by the time of escape, as PNG."""
    centres = (-0.5 + 0.0j, -0.7435 + 0.1314j, -0.1011 + 0.9563j, -1.25 + 0.02j)
    for number, centre in enumerate(centres[:count]):
        reach = 1.3 / 12**number
        y, x = np.mgrid[-1:1:192j, -1:1:256j] * reach
        points = centre + x + 1j * y
        values = np.zeros_like(points)
        escape = np.zeros(points.shape)
        for _ in range(128):
            inside = np.abs(values) <= 2
            values = np.where(inside, values * values + points, values)
            escape += inside
        phase = escape[..., None] * np.array([0.11, 0.17, 0.23])
        pixels = np.where(escape[..., None] >= 128, 0, 127.5 + 127.5 * np.sin(phase))
        yield f"fractal-{number}.png", _png(PIL.Image.fromarray(pixels.astype(np.uint8)))


def tones(count: int = 4, seconds: float = 2.0) -> Iterator[tuple[str, bytes]]:
    """Melodies of decaying notes with overtones, as WAV of 16 bits."""
    rng = np.random.default_rng(SEED)
    time = np.arange(round(seconds * RATE)) / RATE
    for number in range(count):
        signal = np.zeros(len(time))
        for start in np.arange(0, seconds, 0.25):
            note = float(rng.choice(NOTES)) * (1 + number % 2)
            age = np.clip(time - start, 0, None)
            envelope = np.exp(-5 * age) * (time >= start)
            for overtone in range(1, 5):
                signal += envelope / overtone**1.5 * np.sin(2 * np.pi * overtone * note * age)
        noise = rng.normal(0, 2.0, len(time))
        yield f"tones-{number}.wav", _wav(6_000 * signal + noise)


def noise(count: int = 3, seconds: float = 2.0) -> Iterator[tuple[str, bytes]]:
    """White, pink and brown noise, as WAV of 16 bits."""
    rng = np.random.default_rng(SEED)
    size = round(seconds * RATE)
    frequencies = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 20.0)
    for number in range(count):
        spectrum = np.fft.rfft(rng.normal(0, 1, size)) / frequencies ** (number / 2)
        signal = np.fft.irfft(spectrum, size)
        yield f"noise-{number}.wav", _wav(4_000 * signal / signal.std())


def _png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _wav(signal: np.ndarray) -> bytes:
    """A WAV file of one channel of a signal in units of a 16-bit sample."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes(np.clip(np.round(signal), -32_768, 32_767).astype("<i2").tobytes())
    return file.getvalue()
