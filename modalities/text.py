"""Text: the bytes of a file in any encoding without zero bytes, mostly UTF-8."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np

from bytelm.modalities.base import (
    FILE_VIEW,
    Bytes,
    DecodeOptions,
    Header,
    Modality,
    Sample,
)
from bytelm.modalities.raw_files import RAW_SUFFIX, raw_payload, raw_sample, write_raw
from bytelm.modalities.text_decoding import is_text, read_text
from bytelm.modalities.text_head import TextHead


class Text(Modality):
    """Text files, byte for byte, invalid sequences included; UTF-16 and gzip are decoded."""

    name = "text"
    code = 0
    som = 259
    views = ("utf8",)
    plain_views = ("utf8", "utf8")
    value_bytes = (1, 1)
    view_value_bytes: ClassVar = {"utf8": 1}
    header_format = ">"
    header_fields = ()
    head = TextHead
    suffixes = ("txt",)

    def recognises(self, start: bytes) -> bool:
        """Whether `start` may begin a text. So many files do that text must be asked last."""
        return is_text(start)

    def decode_file(self, file: BinaryIO, options: DecodeOptions) -> Sample:
        data, notes = read_text(file, options.limits.max_bytes)
        if options.keep_files:
            file.seek(0)
            return raw_sample(self.name, Header(), file.read())
        return Sample(self.name, Header(), data, notes=notes)

    def member_suffix(self, sample: Sample) -> str:
        return RAW_SUFFIX if sample.is_file else "txt"

    def write_file(self, sample: Sample, stem: Path, suffix: str | None = None) -> Path:
        return write_raw(sample, stem, signatures={}, default="txt")

    def to_view(self, sample: Sample, view: str, patch: int) -> Bytes:
        self.view_code(view)
        raw = raw_payload(sample, view)
        return np.frombuffer(sample.data, np.uint8) if raw is None else raw

    def from_view(self, header: Header, payload: Bytes, view: str, patch: int) -> Sample:
        self.view_code(view)
        return Sample(self.name, header, payload.tobytes(), is_file=view == FILE_VIEW)
