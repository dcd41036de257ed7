"""Captions: the file of `prepare --captions`, and JSON files that describe one image or sound."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

CAPTION_FIELDS = ("caption", "text")
"""Fields of a JSON object that hold a caption, the preferred one first."""
SIDECAR_SUFFIXES = (".txt", ".caption", ".cap", ".lab")
"""Suffixes of texts that describe the image or the sound of the same stem."""
CLASS_SUFFIX = ".cls"
"""Suffix of a text that holds the number of a class, in WebDataset's tars."""


@dataclass(frozen=True)
class Captions:
    """The content of a captions file."""

    path: Path
    texts: dict[str, str]
    """Captions by file name."""
    sha256: str

    def name_of(self, path: str, name: str) -> str | None:
        """The name under which a file has a caption: relative to its source, or to the captions
        file's folder; None where it has none."""
        if name in self.texts:
            return name
        beside = Path(os.path.relpath(path, self.path.absolute().parent)).as_posix()
        return beside if beside in self.texts else None


def load_captions(path: Path) -> Captions:
    """Read a captions file: a JSON object from file names to captions.

    Raises ValueError where it cannot be read or holds something else.
    """
    try:
        data = path.read_bytes()
        texts = json.loads(data)
    except OSError as error:
        raise ValueError(f"cannot read the captions file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the captions file {path} is no JSON: {error}") from error
    if not isinstance(texts, dict):
        raise ValueError(f"the captions file {path} must be an object of file name to caption")
    for name, text in texts.items():
        if not isinstance(text, str) or not is_unicode(text):
            raise ValueError(f"the caption of {name!r} in {path} must be a string of text")
    return Captions(path, texts, hashlib.sha256(data).hexdigest())


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded. JSON may hold halves of surrogate pairs, which cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def caption_of_json(data: bytes) -> str | None:
    """The caption in a JSON object that describes an image or a sound; None where it has none.

    A field of CAPTION_FIELDS holds a string, or a list whose first string is taken, as in the tars
    of LAION and CLAP.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    texts = (first_text(values.get(field)) for field in CAPTION_FIELDS)
    return next((text for text in texts if text), None)


def first_text(value: object) -> str | None:
    """A text that is not blank, or the first one in a list; None for other values."""
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if isinstance(text, str) and text.strip() and is_unicode(text):
            return text
    return None
