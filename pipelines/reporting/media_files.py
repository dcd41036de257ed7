"""Pictures and sounds as files inside a page: data URIs of PNG and WAV.

h lines    w pixels of a line    c channels    n frames of a sound
"""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
import PIL.Image
import soundfile

from bytelm.modalities import MODALITIES
from bytelm.modalities.audio import frames
from bytelm.modalities.base import Bytes, Sample

Pcm = npt.NDArray[np.int16]


def data_uri(media_type: str, data: bytes) -> str:
    """The URI that holds a file of a media type ("image/png", "audio/wav")."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def png_bytes(picture: PIL.Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def wav_bytes(pcm: Pcm, rate: int) -> bytes:
    """A WAV file of 16-bit samples [n c] at `rate` frames a second."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, rate, "PCM_16", format="WAV")
    return buffer.getvalue()


def sample_picture(sample: Sample) -> PIL.Image.Image:
    """The picture of a decoded image, at 8 bits."""
    header = sample.header
    flat = MODALITIES["image"].to_view(sample, "raster", patch=1)
    pixels: Bytes = flat.reshape(header.height, header.width, header.channels)
    return PIL.Image.fromarray(pixels[:, :, 0] if header.channels == 1 else pixels)


def sample_pcm(sample: Sample) -> Pcm:
    """[n c] samples of a decoded sound, at 16 bits."""
    values = frames(sample)
    return (values >> 16 if sample.is_deep else values).astype(np.int16)
