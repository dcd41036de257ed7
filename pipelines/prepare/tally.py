"""Counts of what became documents, for the report of `prepare`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bytelm.modalities.base import Sample
from bytelm.pipelines.shards.set_summary import NAMES_SHOWN

MAX_KINDS = 200
"""Suffixes that are counted by name; further ones are counted as OTHER."""
MAX_SUFFIX = 10
"""Characters of the longest suffix that tells a kind of file."""
CAPTION = "caption"
NO_SUFFIX = "without suffix"
OTHER = "other"


@dataclass
class Tally:
    """Counts over documents. The field names stand in the state file of `prepare`, as JSON."""

    taken: dict[str, dict[str, int]] = field(default_factory=dict)
    """Segments by modality, and there by the suffix of the file; CAPTION for captions."""
    pairs: dict[str, int] = field(default_factory=dict)
    """Documents of several modalities, by their names: `text + image`."""
    notes: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """How many files a note of decoding applies to, and the first NAMES_SHOWN names."""

    def add(
        self, sources: Sequence[str], samples: Sequence[Sample], notes: Iterable[tuple[str, str]]
    ) -> None:
        """Count a document.

        Args:
            sources: name of each sample's file. A caption has that of the file it describes.
            samples: the document's samples, each caption before its file.
            notes: names of files and what decoding changed in them.
        """
        for i, (name, sample) in enumerate(zip(sources, samples, strict=True)):
            is_caption = name in sources[i + 1 : i + 2]
            kinds = self.taken.setdefault(sample.modality, {})
            _count(kinds, CAPTION if is_caption else suffix_of(name), 1)
        modalities = list(dict.fromkeys(sample.modality for sample in samples))
        if len(modalities) > 1:
            _count(self.pairs, " + ".join(modalities), 1)
        for name, note in notes:
            self.add_note(note, 1, [name])

    def add_rows(self, table: str, modalities: Sequence[str], count: int) -> None:
        """Count `count` rows of a table whose documents have segments of these modalities."""
        for modality in modalities:
            _count(self.taken.setdefault(modality, {}), suffix_of(table), count)
        if len(modalities) > 1:
            _count(self.pairs, " + ".join(modalities), count)

    def add_note(self, note: str, count: int, names: Sequence[str]) -> None:
        """Count `count` files to which a note applies; `names` are the first of them."""
        before, first = self.notes.get(note, (0, []))
        self.notes[note] = (before + count, [*first, *names][:NAMES_SHOWN])

    def merge(self, other: Tally) -> None:
        """Add the counts of later documents."""
        for modality, kinds in other.taken.items():
            for kind, count in kinds.items():
                _count(self.taken.setdefault(modality, {}), kind, count)
        for pair, count in other.pairs.items():
            _count(self.pairs, pair, count)
        for note, (count, names) in other.notes.items():
            self.add_note(note, count, names)


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, with its dot; NO_SUFFIX where it has none."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if 1 < len(suffix) <= MAX_SUFFIX else NO_SUFFIX


def _count(counts: dict[str, int], kind: str, count: int) -> None:
    """Add to a count; kinds beyond MAX_KINDS are counted together."""
    if kind not in counts and len(counts) >= MAX_KINDS:
        kind = OTHER
    counts[kind] = counts.get(kind, 0) + count
