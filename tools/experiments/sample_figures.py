"""Figures of drawn payloads beside real ones.

n payloads    h, w height and width in pixels    c channels
"""

from __future__ import annotations

import io
import lzma
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from bytelm.modalities.base import Bytes
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.evaluation.sample_scoring import payload_nats
from bytelm.pipelines.generation.request import Request
from bytelm.tools.experiments.real_or_drawn import (
    image_statistics,
    nearest_distance,
    sound_statistics,
    taken_for_real,
)

MEL_BANDS = 40
PARTS = 8
"""Parts of a continuation, in the order of its bytes, whose bits are shown apart."""


@dataclass(frozen=True)
class Drawn:
    """Payloads, each with the request that it answers."""

    requests: Sequence[Request]
    payloads: Sequence[Bytes]

    @property
    def modality(self) -> str:
        """Modality of all of them."""
        return self.requests[0].modality

    @property
    def rests(self) -> list[Bytes]:
        """The payloads without their prompts."""
        pairs = zip(self.payloads, self.requests, strict=True)
        return [payload[len(request.prompt) :] for payload, request in pairs]

    def images(self) -> list[npt.NDArray[np.uint8]]:
        """The rests of images, [h, w, c] each."""
        pairs = zip(self.rests, self.requests, strict=True)
        return [r.reshape(-1, q.header.width, q.header.channels) for r, q in pairs]

    def waves(self) -> list[npt.NDArray[np.float64]]:
        """The rests of sounds of the view s16be, in [-1, 1)."""
        rests = (rest[: rest.size // 2 * 2] for rest in self.rests)
        return [np.asarray(rest.view(">i2") / 32_768) for rest in rests]


@dataclass(frozen=True)
class Comparison:
    """What drawn payloads are compared with."""

    model: Megabyte
    """The model that drew them."""
    judge: Megabyte | None
    """Another model, which had no part in it."""
    real: Drawn
    """The real files of the prompts, and then others."""
    prompts: int
    """Requests; drawn payload i answers request i % prompts."""
    words: frozenset[str]
    """Words of the training texts."""
    training: Sequence[npt.NDArray[np.uint8]]
    """The same rows of training images as are drawn."""

    def figures(self, drawn: Drawn) -> dict[str, float]:
        """Figures by name; see `sampling.py`."""
        real = Drawn(self.real.requests[: self.prompts], self.real.payloads[: self.prompts])
        figures = _costs(self.model, drawn)
        if self.judge:
            figures["judged"] = _costs(self.judge, drawn)["bits"]
        figures["codec"] = _codec_bits(drawn)
        histograms = _histogram(drawn.rests), _histogram(real.rests)
        figures["histogram"] = float(np.abs(histograms[0] - histograms[1]).sum() / 2)
        if drawn.modality == "text":
            return figures | self._text_figures(drawn)
        if drawn.modality == "image":
            return figures | self._image_figures(drawn)
        return figures | self._sound_figures(drawn, real)

    def _text_figures(self, drawn: Drawn) -> dict[str, float]:
        # The prompt's end and the last word may be cut.
        words = [word for rest in drawn.rests for word in words_of(rest.tobytes())[1:-1]]
        return {
            "fourgrams": float(np.mean([_distinct_fourgrams(rest) for rest in drawn.rests])),
            "words": sum(word in self.words for word in words) / max(1, len(words)),
        }

    def _image_figures(self, drawn: Drawn) -> dict[str, float]:
        images = drawn.images()
        steps = [np.abs(np.diff(image.astype(int), axis=1)).mean() for image in images]
        figures = {
            "colours": float(np.mean([len(_colours(image)) for image in images])),
            "roughness": float(np.mean(steps)),
        }
        near = [
            nearest_distance(image, np.stack(same))
            for image in images
            if (same := [other for other in self.training if other.shape == image.shape])
        ]
        if near:
            figures["nearest"] = float(np.mean(near))
        groups = self.real.images(), images
        statistics = [np.stack([image_statistics(image) for image in group]) for group in groups]
        return figures | self._real_share(*statistics)

    def _sound_figures(self, drawn: Drawn, real: Drawn) -> dict[str, float]:
        rate, waves = drawn.requests[0].header.rate, drawn.waves()
        power = float(np.mean([np.mean(wave**2) for wave in waves]))
        levels = [
            np.mean([_mel(w, rate) for w in group], axis=0) for group in (waves, real.waves())
        ]
        statistics = [
            np.stack([sound_statistics(wave, rate) for wave in group])
            for group in (self.real.waves(), waves)
        ]
        return {
            "loudness": 10 * math.log10(max(power, 1e-10)),
            "spectrum": float(np.abs(levels[0] - levels[1]).mean()),
        } | self._real_share(*statistics)

    def _real_share(
        self, real: npt.NDArray[np.float64], drawn: npt.NDArray[np.float64]
    ) -> dict[str, float]:
        of_real, of_drawn = taken_for_real(real, drawn, self.prompts)
        return {"taken": of_drawn, "taken-real": of_real}


def _costs(model: Megabyte, drawn: Drawn) -> dict[str, float]:
    """Bits per byte behind the prompts: of all, of each part, and of each channel of colours."""
    bits = [
        payload_nats(model, q.modality, q.header, q.view, payload)[len(q.prompt) :] / math.log(2)
        for q, payload in zip(drawn.requests, drawn.payloads, strict=True)
    ]
    figures = {"bits": float(np.concatenate(bits).mean())}
    for part in range(PARTS):
        pieces = [b[len(b) * part // PARTS : len(b) * (part + 1) // PARTS] for b in bits]
        figures[f"bits-part-{part}"] = float(np.concatenate(pieces).mean())
    if drawn.modality == "image":
        coloured = [b for b, q in zip(bits, drawn.requests, strict=True) if q.header.channels == 3]
        for channel in range(3 if coloured else 0):
            values = np.concatenate([b[channel::3] for b in coloured])
            figures[f"bits-channel-{channel}"] = float(values.mean())
    return figures


def _codec_bits(drawn: Drawn) -> float:
    """Bits per byte of a codec, each rest alone: lossless WebP of images, xz of others."""
    if drawn.modality == "image":
        sizes = [len(_webp(image)) for image in drawn.images()]
    else:
        sizes = [len(lzma.compress(rest.tobytes(), preset=9)) for rest in drawn.rests]
    return 8 * sum(sizes) / max(1, sum(map(len, drawn.rests)))


def _webp(image: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(image.squeeze(axis=2) if image.shape[2] == 1 else image).save(
        stream, "WEBP", lossless=True, quality=100, method=6
    )
    return stream.getvalue()


def _histogram(payloads: Sequence[Bytes]) -> npt.NDArray[np.float64]:
    counts = sum(np.bincount(p, minlength=256) for p in payloads)
    return np.asarray(counts / max(1, np.sum(counts)))


def _colours(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.unique(image.reshape(-1, image.shape[2]), axis=0)


def words_of(text: bytes) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"\w+", text.decode("utf-8", "replace").lower())


def _distinct_fourgrams(payload: Bytes) -> float:
    grams = {payload[i : i + 4].tobytes() for i in range(payload.size - 3)}
    return len(grams) / max(1, payload.size - 3)


def _mel(wave: npt.NDArray[np.float64], rate: int) -> npt.NDArray[np.float64]:
    """[MEL_BANDS] mean level of each band over time, in dB."""
    from torchaudio.functional import melscale_fbanks

    size = 512
    spectrum = torch.stft(
        torch.from_numpy(wave).float(), size, window=torch.hann_window(size), return_complex=True
    )
    bands = melscale_fbanks(size // 2 + 1, 0.0, rate / 2, MEL_BANDS, rate)
    power = spectrum.abs().square().T @ bands  # [frames, MEL_BANDS]
    return np.asarray(10 * power.clamp(min=1e-8).log10().mean(dim=0))
