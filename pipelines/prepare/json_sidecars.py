"""JSON files that each describe the image or the sound of the same stem, as img2dataset and CLAP
write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from bytelm.modalities.detect import claimed_modality
from bytelm.pipelines.prepare.captions import CAPTION_FIELDS, caption_of_json
from bytelm.pipelines.prepare.documents import METADATA
from bytelm.pipelines.prepare.file_index import FileIndex
from bytelm.pipelines.prepare.scan import SourceFile

MAX_JSON_BYTES = 1 << 20
_IMG2DATASET = {"key", "sha256", "status", "original_width"}
"""Fields of which img2dataset writes some beside `url`."""


@dataclass(frozen=True)
class Sidecars:
    """Captions and remarks of JSON files beside images and sounds; see `Layout`."""

    captions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


def read_sidecars(
    files: Sequence[SourceFile], index: FileIndex, text_suffixes: Sequence[str]
) -> Sidecars:
    """Find the JSON files beside images and sounds, and read those without a text beside them.

    `dog.json` and `dog.jpg.json` both describe `dog.jpg`. Where `dog.txt` (or another of
    `text_suffixes`) is there, that is the caption, and the JSON is metadata.
    """
    sidecars = Sidecars()
    with_text = 0
    for file in files if index.media else ():
        described = index.media.get(file.stem)
        if described is None and claimed_modality(file.stem) and file.stem in index.by_name:
            described = file.stem
        if described is None:
            continue
        stem = index.by_name[described].stem
        text = next((stem + s for s in text_suffixes if stem + s in index.by_name), None)
        if text is not None:
            with_text += 1
            sidecars.left_out[file.name] = (METADATA, f"{text} is the caption of {described}")
            continue
        caption = caption_of_json(_read(file))
        if caption is None:
            detail = f"no field {' or '.join(CAPTION_FIELDS)} in it"
        else:
            detail = f"its text is the caption of {described}"
            sidecars.captions.setdefault(described, caption)
        sidecars.left_out[file.name] = (METADATA, detail)
    if sidecars.left_out:
        form = _form(next(file for file in files if file.name in sidecars.left_out))
        sidecars.names.append(
            f"{form}: of {len(sidecars.left_out)} JSON files beside images and sounds, "
            f"{len(sidecars.captions)} give captions and {with_text} have a text beside them"
        )
    return sidecars


def _form(file: SourceFile) -> str:
    """The name of the program that wrote a JSON file, or "sidecars"."""
    try:
        values = json.loads(_read(file))
    except (ValueError, RecursionError):
        return "sidecars"
    is_img2dataset = isinstance(values, dict) and "url" in values and values.keys() & _IMG2DATASET
    return "img2dataset" if is_img2dataset else "sidecars"


def _read(file: SourceFile) -> bytes:
    """The content of a JSON file; empty where it is too large or cannot be read."""
    try:
        with open(file.path, "rb") as opened:
            return opened.read() if file.size <= MAX_JSON_BYTES else b""
    except OSError:
        return b""
