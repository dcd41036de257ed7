"""Which columns of a table hold the text, the image and the sound of a row's document."""

from __future__ import annotations

from collections.abc import Mapping

from bytelm.pipelines.prepare.tables import CSV, TableFields

TEXT, IMAGE, AUDIO, OTHER = "text", "image", "audio", "other"
"""Kinds of columns: strings; images or sounds, as bytes or paths; anything else."""
TEXT_NAMES = (
    *("text", "content", "contents", "document", "raw_content", "body", "code", "article", "story"),
    *("caption", "description", "alt_text", "transcript", "transcription", "sentence"),
)
"""Names of columns that hold texts, in lower case."""
_KINDS = (TEXT, IMAGE, AUDIO)
FLAGS = TableFields("--text-field", "--image-field", "--audio-field")


def choose_fields(
    columns: Mapping[str, str], named: TableFields, kind: str
) -> tuple[TableFields | None, str]:
    """Choose the columns of a table.

    A part that the user named has that column; any other has one where there is one candidate. A
    text's candidates are the columns whose names are among TEXT_NAMES, or the only column of
    strings, in a table without images and sounds that is no CSV, whose columns are all strings.

    Args:
        columns: kind of each column, by name.
        named: columns that the user named.
        kind: of the table.
    Returns:
        the fields, or None and the reason in words.
    """
    missing = [name for name in named if name is not None and name not in columns]
    if missing:
        return None, f"it has no column {missing[0]!r}; {_listed(columns)}"
    candidates = {modality: [n for n, k in columns.items() if k == modality] for modality in _KINDS}
    is_media = bool(candidates[IMAGE] or candidates[AUDIO] or named.image or named.audio)
    strings = [n for n in candidates[TEXT] if n not in named]
    texts = [name for name in strings if name.lower() in TEXT_NAMES]
    if not texts and len(strings) == 1 and not is_media and kind != CSV:
        texts = strings
    candidates[TEXT] = texts
    chosen: list[str | None] = []
    for modality, name, flag in zip(_KINDS, named, FLAGS, strict=True):
        found = candidates[modality]
        if name is None and len(found) > 1:
            return None, f"columns that may hold the {modality}: {_some(found)}; choose with {flag}"
        chosen.append(name or (found[0] if found else None))
    if not any(chosen):
        return None, f"no column is known to hold texts, images or sounds; {_listed(columns)}"
    return TableFields(*chosen), ""


def _listed(columns: Mapping[str, str]) -> str:
    names = _some(list(columns)) or "none"
    return f"its columns are {names}: choose with {', '.join(map(str, FLAGS))}"


def _some(names: list[str]) -> str:
    """The first names of a list."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(name[:40] for name in names[:10]) + more
