"""Figures that are kept as they are made, and the commands that make them.

    WORK/cells/NAME-HASH.json    the figures of one cell, with what they were made from

A cell whose file exists is not made again. One that cannot be made is named, and the others go on.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from bytelm.pipelines.storage.files import write_atomic

FigureDict = dict[str, Any]
"""A figure as its JSON line has it."""


class CommandError(Exception):
    """A command that ended with another status than 0."""


class Cells:
    """Cells of one table in a folder."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console
        self.absent: dict[str, str] = {}
        """Why something has no figures, by its name."""
        self.has_failed = False
        """Whether a command failed, which is more than a thing that this machine lacks."""

    def figures(
        self, name: str, made_from: object, make: Callable[[], Iterable[FigureDict]]
    ) -> list[FigureDict]:
        """The figures of a cell, from its file if that exists, else made and printed.

        Args:
            made_from: all that decides the figures, as plain JSON.
        Returns:
            none for a cell that this machine cannot make or whose command failed; `absent` has the
            reason then.
        """
        digest = hashlib.sha256(json.dumps([name, made_from]).encode()).hexdigest()[:16]
        path = self.folder / f"{name.replace('/', '-')}-{digest}.json"
        if path.exists():
            kept: list[FigureDict] = json.loads(path.read_text("utf-8"))["figures"]
            return kept
        self.console.print(f"{name} ...", highlight=False)
        try:
            figures = list(make())
        except (ValueError, CommandError) as error:
            self.absent[name] = str(error)
            self.has_failed |= isinstance(error, CommandError)
            self.console.print(f"no {name}: {error}", highlight=False, soft_wrap=True)
            return []
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"name": name, "made_from": made_from, "figures": figures}
        write_atomic(path, json.dumps(content, indent=1).encode())
        return figures


def experiment_figures(experiment: str, *arguments: object) -> list[FigureDict]:
    """The figures that another experiment's command prints; `CommandError` if it fails."""
    output = _output("-m", f"bytelm.tools.experiments.{experiment}", *arguments)
    return [json.loads(line) for line in output.splitlines()]


def bytelm_output(*arguments: object) -> str:
    """Run `bytelm ARGUMENTS`; returns its stdout. Raises `CommandError` if it fails."""
    return _output("-m", "bytelm", *arguments)


def _output(*arguments: object) -> str:
    words = [str(argument) for argument in arguments]
    done = subprocess.run([sys.executable, *words], check=False, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        raise CommandError(f"{' '.join(words[1:])} ended with status {done.returncode}")
    return done.stdout
