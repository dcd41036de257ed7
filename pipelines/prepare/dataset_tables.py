"""Tables of captions as datasets have them, recognised by their names and their first row.

- Hugging Face's ImageFolder and AudioFolder: `metadata.csv`, `.jsonl` or `.parquet` with a column
  `file_name` (or `*_file_name`), relative to the table, and a column of texts.
- Any other CSV, JSONL or Parquet file with a column that names images or sounds of the source. As
  rows of a table they would be documents beside the files themselves.
- LJSpeech: `metadata.csv` without a header, `ID|text|normalised text`, and `wavs/ID.wav`.
- Common Voice: `train.tsv`, `dev.tsv`, `test.tsv` and `validated.tsv` with `path` and `sentence`,
  and `clips/`. The first three also say the split.
- LibriSpeech: `*.trans.txt` with `ID TEXT`, beside `ID.flac`.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from bytelm.modalities.detect import claimed_modality
from bytelm.pipelines.prepare.captions import is_unicode
from bytelm.pipelines.prepare.documents import BOOKKEEPING, METADATA
from bytelm.pipelines.prepare.file_index import FileIndex, folder_of, join
from bytelm.pipelines.prepare.metadata_tables import MetadataTable, read_metadata, read_records
from bytelm.pipelines.prepare.scan import SourceFile
from bytelm.pipelines.shards.set_summary import NAMES_SHOWN, counted, first_names

TEXT_COLUMNS = (
    *("text", "caption", "captions", "transcription", "transcript", "sentence", "prompt"),
    *("description", "normalized_text", "raw_text", "raw_transcription", "utterance"),
)
"""Columns of texts, the preferred one first."""
SOUND_FOLDERS = ("wavs", "wav", "clips", "audio", "")
COMMON_VOICE_SPLITS = {"train": "train", "dev": "val", "test": "test"}
COMMON_VOICE_TABLES = (*COMMON_VOICE_SPLITS, "validated")
"""Tables of Common Voice whose sentences are right."""

_METADATA = re.compile(r"metadata[^/]*\.(?:csv|tsv|jsonl|parquet)", re.IGNORECASE)
_COMMON_VOICE = re.compile(
    r"(?:train|dev|test|(?:in)?validated|other|reported|clip_durations|(?:un)?validated_sentences)"
    r"\.tsv"
)
_TRANSCRIPTS = re.compile(r".*\.trans\.txt")
TABLE_NAMES = (".csv", ".jsonl", ".parquet", ".tsv", ".trans.txt")
"""Ends of names, in lower case, that can be tables of captions."""


@dataclass
class TableCaptions:
    """Captions, splits and remarks of tables; see `Layout`."""

    captions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    forms: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """How many captions tables of a form give, and the tables' names."""
    unclear: list[str] = field(default_factory=list)
    """Tables of which no column is taken for texts, and their columns."""
    further: int = 0
    """Captions of files that have another one already."""
    columns: set[str] = field(default_factory=set)
    """Columns of the tables that name files."""

    def add_table(self, file: SourceFile, form: str, captions: dict[str, str]) -> None:
        """Add the captions of a table, by the names of the files that they describe."""
        self.left_out[file.name] = (METADATA, "its texts are captions")
        count, tables = self.forms.get(form, (0, []))
        for name, caption in captions.items():
            if not caption.strip() or not is_unicode(caption):
                continue
            if name not in self.captions:
                count += 1
                self.captions[name] = caption
            elif self.captions[name] != caption:
                self.further += 1
        self.forms[form] = (count, [*tables, file.name])

    def remarks(self) -> list[str]:
        """Remarks on what was recognised, a line for each form."""
        lines = [
            f"{form}: {counted(count, 'caption')} ({first_names(tables, len(tables))})"
            for form, (count, tables) in self.forms.items()
        ]
        if self.unclear:
            shown = "; ".join(self.unclear[:NAMES_SHOWN])
            more = "; ..." if len(self.unclear) > NAMES_SHOWN else ""
            lines.append(
                "no captions are taken where the column of texts is not clear "
                f"({shown}{more}): name it text, or give --captions"
            )
        if self.further:
            lines.append(f"not used: {self.further:,} captions of files that have another one")
        return lines


def read_tables(
    candidates: Iterable[SourceFile], index: FileIndex, text_field: str | None
) -> TableCaptions:
    """Read the tables among `candidates`, files whose names end in TABLE_NAMES.

    text_field: the column of texts, as the user named it; None to guess it.
    """
    found = TableCaptions()
    read_named = partial(_read_image_folder, text_field=text_field, is_metadata=True)
    read_other = partial(_read_image_folder, text_field=text_field, is_metadata=False)
    for file in candidates:
        base = file.name.rpartition("/")[2]
        readers: list[Callable[[SourceFile, FileIndex, TableCaptions], bool]] = []
        if _METADATA.fullmatch(base):
            readers = [read_named, _read_lj_speech]
        elif _COMMON_VOICE.fullmatch(base):
            readers = [_read_common_voice]
        elif _TRANSCRIPTS.fullmatch(base):
            readers = [_read_libri_speech]
        else:
            readers = [read_other]
        any(read(file, index, found) for read in readers)
    _leave_rest_to_train(index, found.splits)
    return found


def _leave_rest_to_train(index: FileIndex, splits: dict[str, str]) -> None:
    """Assign clips that no table of a split names to train, so that val and test hold what their
    tables name and no more, as split folders do."""
    if "train" not in splits.values() or len(set(splits.values())) == 1:
        return
    folders = {folder_of(name) for name in splits}
    for file in index.files:
        if folder_of(file.name) in folders:
            splits.setdefault(file.name, "train")


def _read_image_folder(
    file: SourceFile,
    index: FileIndex,
    found: TableCaptions,
    *,
    text_field: str | None,
    is_metadata: bool,
) -> bool:
    """Read a table of Hugging Face's ImageFolder or AudioFolder; False where it is none.

    is_metadata: whether the table's name says that it is one. Otherwise its values have to name
        files of the source.
    """
    folder = folder_of(file.name)
    if not _holds_media(index, folder):
        return False
    table = read_metadata(file.path)
    if table is None:
        return False
    name_columns = [c for c in table.columns if is_metadata and c.endswith("file_name")]
    name_columns = name_columns or _columns_of_names(table, folder, index)
    if not name_columns:
        return False
    found.columns |= set(table.columns)
    is_named = text_field in table.columns and text_field not in name_columns
    text_column = text_field if is_named else _text_column(table, name_columns)
    if text_column is None:
        others = ", ".join(c for c in table.columns if c not in name_columns) or "none"
        detail = f"no column of captions among its columns: {others}"
        found.left_out[file.name] = (METADATA, detail)
        found.unclear.append(f"{file.name} with the columns {others}")
        return True
    text = table.columns.index(text_column)
    names = [table.columns.index(column) for column in name_columns]
    captions: dict[str, str] = {}
    for row in table.rows:
        name = next((row[i] for i in names if row[i]), "")
        if name and row[text].strip():
            caption = captions.setdefault(join(folder, name), row[text])
            found.further += caption != row[text]
    is_sound = any(claimed_modality(name) == "audio" for name in captions)
    form = "AudioFolder" if is_sound else "ImageFolder"
    found.add_table(file, f"{form}, column {text_column!r}", captions)
    return True


def _columns_of_names(table: MetadataTable, folder: str, index: FileIndex) -> list[str]:
    """The columns whose first values are names of images or sounds, for the most part."""
    columns = []
    for i, column in enumerate(table.columns):
        values = [row[i] for row in table.rows[:100] if row[i]]
        found = [v for v in values if claimed_modality(v) and join(folder, v) in index.by_name]
        if 2 * len(found) > len(values):
            columns.append(column)
    return columns


def _holds_media(index: FileIndex, folder: str) -> bool:
    """Whether a folder or one below it holds images or sounds."""
    prefix = f"{folder}/" if folder else ""
    return any(f == folder or f.startswith(prefix) for f in index.media_folders)


def _text_column(table: MetadataTable, name_columns: Sequence[str]) -> str | None:
    """The column of texts: one of TEXT_COLUMNS, or the only other column that has no numbers."""
    lowered = {column.lower(): column for column in reversed(table.columns)}
    named = next((lowered[name] for name in TEXT_COLUMNS if name in lowered), None)
    if named is not None:
        return named
    others = [
        column
        for i, column in enumerate(table.columns)
        if column not in name_columns and _are_words(row[i] for row in table.rows[:100])
    ]
    return others[0] if len(others) == 1 else None


def _are_words(values: Iterable[str]) -> bool:
    """Whether some values are texts with letters, and none is a number."""
    filled = [value for value in values if value.strip()]
    return bool(filled) and all(re.search(r"[^\W\d_]", value) for value in filled)


def _read_lj_speech(file: SourceFile, index: FileIndex, found: TableCaptions) -> bool:
    """Read a table of LJSpeech's form; False where none of its first lines names a sound."""
    folder = folder_of(file.name)
    if not file.name.lower().endswith(".csv"):
        return False
    try:
        rows = [line.split("|") for line in _lines(file.path)]
    except (OSError, ValueError):
        return False
    if not any(len(row) > 1 and _sound(index, folder, row[0]) for row in rows[:20]):
        return False
    captions: dict[str, str] = {}
    for row in rows:
        texts = [text for text in row[1:3] if text.strip()]
        if texts:
            name = _sound(index, folder, row[0]) or join(folder, f"wavs/{row[0]}.wav")
            found.further += captions.setdefault(name, texts[0]) != texts[0]
    found.add_table(file, "LJSpeech", captions)
    return True


def _sound(index: FileIndex, folder: str, name: str) -> str | None:
    """The sound that LJSpeech's ID names, in one of SOUND_FOLDERS beside the table."""
    names = (index.medium(join(folder, sub), name) for sub in SOUND_FOLDERS)
    return next((found for found in names if found), None) if name else None


def _read_common_voice(file: SourceFile, index: FileIndex, found: TableCaptions) -> bool:
    """Read a table of Common Voice; False where no `clips` are beside it."""
    folder = folder_of(file.name)
    if join(folder, "clips") not in index.media_folders:
        return False
    table = os.path.splitext(file.name.rpartition("/")[2])[0]
    try:
        header, *rows = read_records(file.path, "\t")
    except (OSError, ValueError, csv.Error):
        return False
    if table not in COMMON_VOICE_TABLES or not {"path", "sentence"} <= set(header):
        detail = "of Common Voice: no sentences of clips that were validated"
        found.left_out[file.name] = (BOOKKEEPING, detail)
        return True
    path, sentence = header.index("path"), header.index("sentence")
    captions: dict[str, str] = {}
    for row in rows:
        if len(row) > max(path, sentence):
            name = index.medium(join(folder, "clips"), row[path])
            captions[name or join(folder, f"clips/{row[path]}")] = row[sentence]
    if table in COMMON_VOICE_SPLITS:
        for name in captions:
            found.splits.setdefault(name, COMMON_VOICE_SPLITS[table])
    found.add_table(file, "Common Voice", captions)
    return True


def _read_libri_speech(file: SourceFile, index: FileIndex, found: TableCaptions) -> bool:
    """Read transcripts of LibriSpeech; False where none of them is of a sound beside them."""
    folder = folder_of(file.name)
    try:
        rows = [line.partition(" ") for line in _lines(file.path)]
    except (OSError, ValueError):
        return False
    captions: dict[str, str] = {}
    is_found = False
    for name, _, text in rows:
        sound = index.medium(folder, name)
        is_found = is_found or sound is not None
        captions[sound or join(folder, f"{name}.flac")] = text
    if is_found:
        found.add_table(file, "LibriSpeech", captions)
    return is_found


def _lines(path: str) -> list[str]:
    """The lines of a text in UTF-8 that are not blank; ValueError for another encoding."""
    with open(path, encoding="utf-8-sig") as file:
        return [line.rstrip("\n") for line in file if line.strip()]
