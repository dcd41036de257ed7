"""Recognition of datasets as people have them: which files are captions, and which bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bytelm.pipelines.prepare.scan import SourceFile


@dataclass(frozen=True)
class Layout:
    """What was recognised in the files of one source. Files have their names in `SourceFile`."""

    captions: dict[str, str] = field(default_factory=dict)
    """Captions by the name of the file that they describe."""
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and detail by name, for files that are no documents: bookkeeping, and files whose
    content became captions. The reasons are harmless."""
    splits: dict[str, str] = field(default_factory=dict)
    """Splits that tables of the dataset assign, by file name."""
    names: list[str] = field(default_factory=list)
    """What was recognised, in words for the summary: "img2dataset: 5 captions"."""


def recognise_layout(files: Sequence[SourceFile], source: Path) -> Layout:
    """Recognise the datasets in the files of a source.

    Args:
        files: the source's files in any order, without those that patterns exclude. A tar is one
            file, since its members are listed later (they bring their own captions).
        source: the source as the user named it.
    """
    return Layout()
