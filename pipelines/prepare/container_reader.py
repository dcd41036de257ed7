"""Work on tars and tables while the sources of `prepare` are listed: their download, and what the
listing needs to know of their content."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bytelm.pipelines.prepare.table_inspection import TableInspection
from bytelm.pipelines.prepare.webdataset_tars import TarContents, read_webdataset_tar
from bytelm.pipelines.runtime.processes import cause_of_death
from bytelm.pipelines.storage.cache import CacheConfig
from bytelm.pipelines.storage.remote import RemoteStore

_MAIN = "from bytelm.pipelines.prepare.table_inspection import main; main()"


class Download(NamedTuple):
    """A tar or table at a URL that is not here yet."""

    path: str
    """Where it goes."""
    url: str


class TableQuestion(NamedTuple):
    """A table that is to be inspected."""

    path: str
    name: str
    """Relative to its source."""
    kind: str
    compression: str
    """The table's format; see TableFormat."""
    fields: tuple[str | None, ...]
    """The columns that the user named."""


class ContainerReader:
    """Does one after the other, on this machine."""

    def download(self, downloads: Sequence[Download]) -> None:
        """Download tars and tables; ValueError where one cannot be had."""
        for path, url in downloads:
            download(path, url)

    def read_tars(self, paths: Sequence[str], max_member_bytes: int) -> Iterator[TarContents]:
        """The contents of tars, in order; see read_webdataset_tar."""
        return (read_webdataset_tar(path, max_member_bytes) for path in paths)

    def inspect_tables(self, questions: Sequence[TableQuestion]) -> Iterator[TableInspection]:
        """The inspections of tables, in order; RuntimeError where the inspecting process does not
        start."""
        with InspectionProcess() as process:
            for question in questions:
                yield process.ask(question)


def download(path: str, url: str) -> None:
    """Download an object to a file in a folder that exists, unless the file does.

    Raises ValueError where the object cannot be had.
    """
    if os.path.exists(path):
        return
    location, _, name = url.rpartition("/")
    store = RemoteStore(location, CacheConfig(Path(path).parent, limit_bytes=1))
    try:
        store.download(name, Path(path))
        os.utime(path, (0, 0))  # a tar that is downloaded again is no newer than the set made of it
    except OSError as error:
        raise ValueError(f"source {error}") from error


class InspectionProcess:
    """The child process that inspects tables, which a damaged one may end. It starts at the first
    question; a context manager that ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> InspectionProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def ask(self, question: TableQuestion) -> TableInspection:
        """Inspect a table. RuntimeError where the process does not start."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._end()
            detail = f"reading its columns: {cause_of_death(process.returncode)}"
            return TableInspection(reason="decoder died", detail=detail)
        return TableInspection(**json.loads(answer))

    def _start(self) -> subprocess.Popen[str]:
        """Start the process, and wait until it is ready."""
        command = [sys.executable, "-P", "-c", _MAIN]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            cause = cause_of_death(self._process.wait())
            raise RuntimeError(f"the process that inspects tables does not start ({cause})")
        return self._process

    def _end(self) -> None:
        """End the process, and wait for it."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None
