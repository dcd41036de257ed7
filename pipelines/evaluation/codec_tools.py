"""Command-line tools of codecs, run on temporary files."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TOOL_SECONDS = 600.0
"""Longest time of one call of a tool."""
VERSION_SECONDS = 10.0
FILES_OF_A_CALL = 1000
"""Files that a tool which takes many gets at once."""
_VERSION = re.compile(r"\d+(\.\d+)+")


class ToolError(Exception):
    """A tool that ended with an error, or not in time."""


@dataclass(frozen=True)
class Tool:
    """A command-line encoder that writes one file for each file it reads."""

    command: str
    """A command line: `{in}` stands for the file to read, `{in}...` for many at once, `{out}` for
    the file to write, which is the read file's name with `out_suffix` behind."""
    out_suffix: str
    in_suffix: str = ""
    """Suffix of the files to read, by which some tools tell the format."""
    version_option: str = "--version"

    @property
    def program(self) -> str:
        """Name of the program."""
        return self.command.split()[0]

    @property
    def path(self) -> str | None:
        """Path of the program; None where it is not installed."""
        return shutil.which(self.program)

    def version(self) -> str:
        """The program's name and version; the name alone where it does not tell its version."""
        try:
            shown = subprocess.run(
                [self.program, self.version_option],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=VERSION_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return self.program
        number = _VERSION.search((shown.stdout + shown.stderr).decode("utf-8", "replace"))
        return f"{self.program} {number[0]}" if number else self.program

    def sizes(self, contents: Sequence[bytes], processes: ToolProcesses) -> list[int]:
        """Sizes in bytes of the files that the tool writes for files of these contents.

        Raises ToolError where it fails, and OSError for a full disk.
        """
        with tempfile.TemporaryDirectory(prefix="bytelm-codec-") as folder:
            names = [f"{i}{self.in_suffix}" for i in range(len(contents))]
            for name, content in zip(names, contents, strict=True):
                (Path(folder) / name).write_bytes(content)
            for arguments in self._calls(names):
                processes.run(arguments, folder)
            try:
                return [(Path(folder) / (n + self.out_suffix)).stat().st_size for n in names]
            except FileNotFoundError as error:
                raise ToolError(f"{self.program} wrote no file") from error

    def _calls(self, names: Sequence[str]) -> Iterator[list[str]]:
        """The arguments of each call that it takes to encode files of these names."""
        words = shlex.split(self.command)
        if words[-1] == "{in}...":
            for first in range(0, len(names), FILES_OF_A_CALL):
                yield [*words[:-1], *names[first : first + FILES_OF_A_CALL]]
        else:
            for name in names:
                files = {"{in}": name, "{out}": name + self.out_suffix}
                yield [files.get(word, word) for word in words]


class ToolProcesses:
    """Running tools of several threads, which can be killed together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False

    def run(self, arguments: Sequence[str], folder: str) -> None:
        """Run a tool in a folder until it ends; ToolError where it fails or was killed."""
        with self._lock:
            if self._is_stopped:
                raise ToolError("stopped")
            null = subprocess.DEVNULL
            process = subprocess.Popen(arguments, cwd=folder, stdin=null, stdout=null, stderr=null)
            self._running.add(process)
        try:
            status = process.wait(TOOL_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ToolError(f"{arguments[0]} took more than {TOOL_SECONDS:.0f} s") from error
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._running.remove(process)
        if status:
            raise ToolError(f"{arguments[0]} ended with status {status}")

    def kill(self) -> None:
        """Kill the running tools, and let no other start."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.kill()
