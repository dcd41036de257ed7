"""Uploaded files, decoded in a process of its own under limits of memory and time.

A file that hangs, crashes or bloats its decoder costs that process only (`prepare/decode_worker`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import PIL.Image

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, Header, Sample
from bytelm.modalities.detect import START_BYTES, modality_of
from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.documents import DocumentPart, SourceDocument
from bytelm.pipelines.reporting.media_files import png_bytes, sample_pcm, sample_picture, wav_bytes
from bytelm.pipelines.serving.limits import DECODE_LIMITS, MAX_SIDE, MAX_UPLOAD_BYTES

ARTICLES = {"image": "an image", "audio": "a sound", "text": "a text"}
USUAL_SIDE = 64
"""Side of an image for a model that names no sizes."""
NEAR_ENOUGH = 0.9
"""Share of the best fitting size's fit above which a more frequent size is taken."""


def upload_modality(path: Path) -> str | None:
    """The modality that an upload's first bytes show, or None. ValueError for one too large."""
    size = path.stat().st_size
    if size > MAX_UPLOAD_BYTES:
        raise ValueError(
            f"{path.name} has {size:,} bytes, and the server takes {MAX_UPLOAD_BYTES:,} at most."
        )
    with path.open("rb") as file:
        return modality_of(file.read(START_BYTES))


def decode_upload(path: Path, modality: str, options: DecodeOptions) -> Sample:
    """The sample in an upload. ValueError if it is none of the modality, broken or too large."""
    found = upload_modality(path)
    if found != modality:
        is_what = ARTICLES[found] if found else "no image, no sound and no text"
        raise ValueError(f"{path.name} is {is_what}, and {ARTICLES[modality]} is needed here.")
    limited = replace(options, limits=DECODE_LIMITS)
    # The content alone decides, so the decoder is given no name to compare with.
    part = DocumentPart(modality, "upload", str(path), path.stat().st_size)
    with DecodePool(limited, workers=1) as pool:
        [decoded] = pool.decode_documents([SourceDocument("upload", "train", (part,))])
    if decoded.skipped:
        skipped = decoded.skipped[0]
        raise ValueError(f"{path.name} cannot be read: {skipped.reason} ({skipped.detail}).")
    return decoded.samples[0]


def fit_image(sample: Sample, headers: Sequence[Header]) -> Sample:
    """An image as a model has seen them, at 8 bits: cropped around its middle, scaled, and grey
    where the model saw only grey ones. An image of a known size stays as it is.

    Args:
        headers: headers of the model's training set, most frequent first.
    """
    wanted = _fitting_header(sample.header, headers)
    picture = sample_picture(sample)
    if picture.size != (wanted.width, wanted.height):
        picture = _cropped(picture, wanted)
    return _image_sample(picture, wanted.channels)


def shrink_image(sample: Sample, max_bytes: int) -> Sample:
    """An image at 8 bits, scaled down until it has at most `max_bytes` bytes."""
    header = sample.header
    size = header.width * header.height * header.channels
    if size <= max_bytes:
        return sample
    factor = (max_bytes / size) ** 0.5
    picture = sample_picture(sample).resize(
        (max(1, int(header.width * factor)), max(1, int(header.height * factor))),
        PIL.Image.Resampling.LANCZOS,
    )
    return _image_sample(picture, header.channels)


def first_seconds(sample: Sample, max_bytes: int) -> Sample:
    """The start of a sound, of at most `max_bytes` bytes."""
    if len(sample.data) <= max_bytes:
        return sample
    frame_bytes = MODALITIES["audio"].value_bytes[sample.is_deep] * sample.header.channels
    return replace(sample, data=sample.data[: max_bytes // frame_bytes * frame_bytes])


def first_bytes(sample: Sample, max_bytes: int) -> Sample:
    """The start of a text, of at most `max_bytes` bytes."""
    return (
        sample if len(sample.data) <= max_bytes else replace(sample, data=sample.data[:max_bytes])
    )


def fitting_sound_options(sample: Sample, headers: Sequence[Header]) -> DecodeOptions | None:
    """Options that decode a sound with a rate and channels that a model has seen; None where the
    sound has them already, or nothing is known."""
    if not headers or sample.header in headers:
        return None
    return DecodeOptions(audio_rate=headers[0].rate, audio_channels=headers[0].channels)


def sample_file(sample: Sample) -> bytes:
    """A decoded image or sound as a PNG or WAV file, which holds it at 8 or 16 bits."""
    if sample.modality == "image":
        return png_bytes(sample_picture(sample))
    return wav_bytes(sample_pcm(sample), sample.header.rate)


def _fitting_header(header: Header, known: Sequence[Header]) -> Header:
    """The known header that an image is most like: the most frequent one of about its shape."""
    small = [h for h in known if max(h.width, h.height) <= MAX_SIDE]
    if header in small:
        return header
    if not small:
        factor = min(1.0, USUAL_SIDE / max(header.width, header.height))
        size = max(1, round(header.width * factor)), max(1, round(header.height * factor))
        return Header(*size, header.channels)
    fits = [_fit(header, h) for h in small]
    return next(h for h, fit in zip(small, fits, strict=True) if fit >= NEAR_ENOUGH * max(fits))


def _fit(header: Header, other: Header) -> float:
    """Share of an image that is left when it is cropped to the shape of another one."""
    ratio = header.width * other.height / (header.height * other.width)
    return min(ratio, 1 / ratio)


def _cropped(picture: PIL.Image.Image, wanted: Header) -> PIL.Image.Image:
    """The middle of a picture in the shape and size of a header."""
    factor = min(picture.width / wanted.width, picture.height / wanted.height)
    width, height = factor * wanted.width, factor * wanted.height
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return picture.resize(
        (wanted.width, wanted.height),
        PIL.Image.Resampling.LANCZOS,
        box=(left, top, left + width, top + height),
    )


def _image_sample(picture: PIL.Image.Image, channels: int) -> Sample:
    converted = picture.convert("L" if channels == 1 else "RGB")
    return Sample("image", Header(*converted.size, channels), converted.tobytes())
