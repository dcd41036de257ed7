"""A loaded model that scores, generates and compresses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from bytelm.modalities import MODALITIES
from bytelm.modalities.audio import frames
from bytelm.modalities.base import FILE_VIEW, Header, Sample
from bytelm.modalities.image import deep_pixels
from bytelm.model.adaptation import TRAINED, Adaptation
from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.compression.compress import compress_documents, decompress_documents
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.evaluation.sample_scoring import sample_nats
from bytelm.pipelines.generation.generate import generate_samples
from bytelm.pipelines.generation.media import (
    Source,
    detect_modality,
    read_bytes,
    read_sample,
    source_name,
)
from bytelm.pipelines.generation.options import GenerateOptions, build_requests, sampling_of
from bytelm.pipelines.generation.sampling_defaults import SamplingChoices


class LanguageModel:
    """A trained model; `bytelm.load` gives one.

    Attributes:
        model: the network, in evaluation mode.
        dataset_info: views, headers and pairs of the training set.
        adaptation: how a copy of the model learns from what it compresses, if it is to.
    """

    def __init__(
        self, model: Megabyte, dataset_info: DatasetInfo, adaptation: Adaptation = TRAINED
    ) -> None:
        self.model = model
        self.dataset_info = dataset_info
        self.adaptation = adaptation

    @property
    def config(self) -> ModelConfig:
        """Sizes and options of the network."""
        return self.model.config

    @property
    def views(self) -> Mapping[str, str]:
        """The view in which the model reads each modality."""
        return self.dataset_info.views

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self.model.lm_head.weight.device

    def score(
        self, data: bytes | str | os.PathLike[str], modality: str | None = None
    ) -> npt.NDArray[np.float64]:
        """Score a file as `bytelm evaluate` does, in fp32 and by plain scoring.

        Args:
            data: the bytes of a file (a text, a PNG, a FLAC, ...), a text as a string, or the path
                of a file as a `Path`.
            modality: text, image or audio; None finds it from the first bytes.
        Returns:
            [n] nats, -log p of each byte of the payload in the model's view. A document longer
            than the model's context is cut into pieces, of which none sees the one before it; only
            mixing in the output goes on over them.
        Raises:
            ValueError: for a file that cannot be read as that modality.
        """
        source = data.encode() if isinstance(data, str) else data
        sample, view = self._read(source, "text" if isinstance(data, str) else modality)
        return sample_nats(self.model, sample, view)

    def generate(
        self,
        modality: str = "text",
        *,
        prompt: Source | None = None,
        condition_on: Source | None = None,
        count: int = 1,
        batch: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        precision: str = "fp32",
        max_bytes: int = 512,
        allow_invalid_utf8: bool = False,
        size: tuple[int, int] | None = None,
        prompt_rows: int = 16,
        seconds: float = 1.0,
        rate: int | None = None,
        channels: int | None = None,
        prompt_seconds: float = 0.25,
    ) -> list[Any]:
        """Generate texts, images or sounds, the same as `bytelm generate` for the same options.

        Args:
            modality: text, image or audio.
            prompt: a text to go on with, or an image or sound to begin with, as the path or the
                bytes of a file.
            condition_on: a caption or transcript that the image or sound follows; or the path or
                the bytes of an image or sound that the text describes.
            count: number of results.
            batch: results drawn at once; None takes as many as half of the free memory holds.
            seed: seed of the first result; each further one adds 1.
            temperature: divides the logits; 0 takes the likeliest byte. None, here and in the next
                three, takes what `bytelm calibrate` measured for this model, or else the modality's
                default (`generation.sampling_defaults`).
            top_k: draw from the k likeliest bytes only; 0 for all.
            top_p: draw from the likeliest bytes whose probabilities add up to this.
            min_p: draw from bytes with at least this share of the likeliest byte's probability.
            precision: fp32 or bf16.
            max_bytes: longest text in bytes, prompt included.
            allow_invalid_utf8: allow texts that are not valid UTF-8.
            size: width and height of an image; None takes the prompt's, or draws them.
            prompt_rows: rows of pixels to keep of an image prompt.
            seconds: length of a sound, prompt included.
            rate: samples per second of a sound; None takes the prompt's, or draws it.
            channels: 1 or 3 of an image, 1 to 255 of a sound; None takes the prompt's, or draws
                them with the size or the rate.
            prompt_seconds: seconds to keep of a sound prompt.
        Returns:
            texts as `bytes`, images as `PIL.Image.Image`, and sounds as pairs of int16 samples
            [frames, channels] and their rate. Of the view `deep`, images are uint16 arrays
            [height, width, channels]; of `s24be`, samples are int32, with 24 bits in the upper
            part.
        Raises:
            ValueError: for options that do not fit each other, the model or its training set.
        """
        options = GenerateOptions(
            modality=modality,
            prompt=prompt,
            condition_on=condition_on,
            count=count,
            batch=batch,
            seed=seed,
            choices=SamplingChoices(temperature, top_k, top_p, min_p),
            precision=precision,
            max_bytes=max_bytes,
            allow_invalid_utf8=allow_invalid_utf8,
            size=size,
            prompt_rows=prompt_rows,
            seconds=seconds,
            rate=rate,
            channels=channels,
            prompt_seconds=prompt_seconds,
        )
        requests = build_requests(self.model, self.dataset_info, options)
        sampling = sampling_of(self.model, self.dataset_info, options, requests[0])
        samples = dict(
            generate_samples(
                self.model, requests, options.seeds, sampling, precision, batch=batch
            )
        )
        return [_as_object(samples[number]) for number in range(count)]

    def compress(self, data: bytes, name: str = "data", *, adapt: bool = False) -> bytes:
        """Compress any bytes without loss, as `bytelm compress --keep-files` does.

        Args:
            name: name of the file that `bytelm decompress` restores.
            adapt: let a copy of the model learn from the bytes while it codes them, as `--adapt`
                does: smaller, and slower both ways.
        Returns:
            the container, which only the same model can decompress.
        """
        adaptation = self.adaptation if adapt else None
        return compress_documents(
            self.model, self.views, [(name, data)], keep_files=True, adaptation=adaptation
        )

    def decompress(self, packed: bytes) -> bytes:
        """Restore the bytes that `compress` was given.

        Raises:
            ValueError: for bytes that are no container, one of several files, and one of another
                model.
            DamageError: for a damaged container, and one that this machine cannot decode.
        """
        documents = decompress_documents(self.model, packed)
        if len(documents) != 1:
            raise ValueError(
                f"the container holds {len(documents)} files: restore them with `bytelm decompress`"
            )
        return documents[0][1]

    def _read(self, source: bytes | os.PathLike[str], modality: str | None) -> tuple[Sample, str]:
        """The sample in a file, and the view in which the model reads it."""
        name = modality or detect_modality(source)
        if name is None:
            raise ValueError(
                f"{source_name(source)} is no image, no sound and no text: name its modality"
            )
        if name not in MODALITIES:
            raise ValueError(f"no modality {name!r}: choose one of {', '.join(MODALITIES)}")
        view = self.views[name]
        if modality == "text":  # any bytes, where the caller says that they are a text
            data = read_bytes(source)
            return Sample("text", Header(), data, is_file=view == FILE_VIEW), view
        return read_sample(name, source, MODALITIES[name].options_for(view)), view


def _as_object(sample: Sample) -> Any:
    """A sample as Python libraries hold it."""
    header = sample.header
    if sample.modality == "image" and sample.is_deep:
        return deep_pixels(sample)
    if sample.modality == "image":
        mode = "L" if header.channels == 1 else "RGB"
        return PIL.Image.frombytes(mode, (header.width, header.height), sample.data)
    if sample.modality == "audio":
        return frames(sample), header.rate
    return sample.data
