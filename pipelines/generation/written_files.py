"""Files that `generate` writes: each whole under its name, and known to a call that goes on.

OUT/image-000.png                  a file, renamed from .image-000.part.png when it is whole
OUT/.generate-IDENTITY/0           a mark: the name of the file 0 of an unfinished call
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Sample

MARKS = ".generate-"


class WrittenFiles:
    """The files of one call in a folder that exists."""

    def __init__(self, out: Path, identity: str):
        """
        Args:
            identity: of all that decides the files' bytes; empty keeps no marks.
        """
        self._out = out
        self._marks = out / f"{MARKS}{identity}" if identity else None

    def begin(self) -> dict[int, Path]:
        """Forget the marks of other calls; returns the files, by number, that a call of this
        identity wrote before it ended early. One rank calls it, before any writes."""
        for folder in self._out.glob(f"{MARKS}*"):
            if folder != self._marks:
                shutil.rmtree(folder)
        if self._marks is None:
            return {}
        self._marks.mkdir(exist_ok=True)
        marked = {int(mark.name): self._out / mark.read_text() for mark in self._marks.iterdir()}
        return {number: path for number, path in marked.items() if path.is_file()}

    def write(self, number: int, sample: Sample, suffix: str | None) -> Path:
        """Write a sample as the file of a number; returns its path.

        Raises ValueError for a sample that a file of the suffix cannot hold.
        """
        modality = MODALITIES[sample.modality]
        stem = f"{modality.name}-{number:03d}"
        part = modality.write_file(sample, self._out / f".{stem}.part", suffix)
        path = self._out / f"{stem}{part.suffix}"
        part.replace(path)
        if self._marks is not None:
            # A mark that is cut off names no file, and the file is drawn again.
            (self._marks / str(number)).write_text(path.name)
        return path

    def end(self) -> None:
        """Forget the marks of this call, whose files are all there. One rank calls it."""
        if self._marks is not None:
            shutil.rmtree(self._marks)
