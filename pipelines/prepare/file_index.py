"""An index of a source's files by names, with which the layouts of datasets are recognised."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from functools import cached_property

from bytelm.modalities.detect import claimed_modality
from bytelm.pipelines.prepare.scan import SourceFile
from bytelm.pipelines.prepare.webdataset_tars import is_tar

TABLE_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".csv", ".tsv")


class FileIndex:
    """The files of a source; each part is made when it is asked for, since few sources need it."""

    def __init__(self, files: Sequence[SourceFile]):
        self.files = files

    @cached_property
    def by_name(self) -> dict[str, SourceFile]:
        """Files by name, relative to the source."""
        return {file.name: file for file in self.files}

    @cached_property
    def media(self) -> dict[str, str]:
        """Names of files whose suffix claims an image or a sound, by their stems; of several files
        of one stem the first image, or else the first sound."""
        media: dict[str, str] = {}
        for file in self.files:
            claimed = claimed_modality(file.name)
            if claimed == "image" or (claimed and file.stem not in media):
                first = media.setdefault(file.stem, file.name)
                if claimed == "image" and claimed_modality(first) != "image":
                    media[file.stem] = file.name
        return media

    @cached_property
    def media_folders(self) -> set[str]:
        """Folders that hold images or sounds."""
        return {folder_of(name) for name in self.media.values()}

    @cached_property
    def tar_stems(self) -> set[str]:
        """Names of tars without their suffixes."""
        return {f.name[: f.name.lower().rindex(".tar")] for f in self.files if _is_plain_tar(f)}

    @cached_property
    def tar_folders(self) -> set[str]:
        """Folders that hold tars, and the folders above them."""
        return with_ancestors(folder_of(stem) for stem in self.tar_stems)

    @cached_property
    def data_folders(self) -> set[str]:
        """Folders that hold tars, tables, images or sounds, and the folders above them."""
        tables = (f.name for f in self.files if f.name.lower().endswith(TABLE_SUFFIXES))
        return self.tar_folders | with_ancestors((*map(folder_of, tables), *self.media_folders))

    def medium(self, folder: str, name: str) -> str | None:
        """The image or sound that a table in `folder` means by `name`, with or without suffix."""
        path = join(folder, name)
        return path if path in self.by_name else self.media.get(path)


def _is_plain_tar(file: SourceFile) -> bool:
    return is_tar(file.name) and ".tar" in file.name.lower()


def folder_of(name: str) -> str:
    """The folder of a name relative to the source; empty for the source itself."""
    return name.rpartition("/")[0]


def join(folder: str, name: str) -> str:
    """A name relative to the source, from one relative to a folder of it."""
    return posixpath.normpath(posixpath.join(folder, name))


def with_ancestors(folders: Iterable[str]) -> set[str]:
    """Folders and all folders above them, up to the source itself, which is empty."""
    found: set[str] = set()
    for folder in folders:
        while folder not in found:
            found.add(folder)
            folder = folder_of(folder)
    return found
