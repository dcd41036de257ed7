"""The patterns of `prepare --include` and `--exclude`.

A pattern is matched with the name of a file relative to its source (of a member, `TAR/MEMBER`), or
with that of a folder above it; a pattern without a slash also with the last part of these names.
`*` and `?` match slashes too, and `**/` any number of folders, none included. Upper and lower case
differ.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence

from bytelm.pipelines.prepare.documents import EXCLUDED, SkippedFile
from bytelm.pipelines.shards.set_summary import NAMES_SHOWN

_ANY_FOLDERS = "(?:.*/)?"


class NamePatterns:
    """Decides by name which files are used, and counts those that are not."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]):
        """
        Args:
            include: patterns, one of which a file must match; empty lets all files in.
            exclude: patterns none of which a file may match.
        """
        self._include = [_compile(pattern) for pattern in include]
        self._exclude = {pattern: _compile(pattern) for pattern in exclude}
        self._count: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether every file is used."""
        return not (self._include or self._exclude)

    def admits(self, name: str) -> bool:
        """Whether a file is used. One that is not is counted."""
        if not self.admits_tar(name):
            return False
        if self._include and not any(p.fullmatch(name) for p in self._include):
            self._leave_out("matches no --include", name)
            return False
        return True

    def admits_tar(self, name: str) -> bool:
        """Whether a tar is opened, whose members are then asked for by their own names."""
        for pattern, compiled in self._exclude.items():
            if compiled.fullmatch(name):
                self._leave_out(f"matches --exclude {pattern}", name)
                return False
        return True

    def left_out(self) -> list[SkippedFile]:
        """Entries for the first files of each cause, the last of which stands for all others."""
        entries: list[SkippedFile] = []
        for cause, count in self._count.items():
            *first, last = self._first[cause]
            entries += (SkippedFile(name, EXCLUDED, cause) for name in first)
            rest = count - len(first)
            detail = f"{cause}, with {rest - 1:,} others" if rest > 1 else cause
            entries.append(SkippedFile(last, EXCLUDED, detail, count=rest))
        return entries

    def _leave_out(self, cause: str, name: str) -> None:
        self._count[cause] += 1
        first = self._first.setdefault(cause, [])
        if len(first) <= NAMES_SHOWN:
            first.append(name)


def _compile(pattern: str) -> re.Pattern[str]:
    """A regular expression for the names that a pattern matches, or that are spelled like it."""
    spelled = pattern.removeprefix("./").strip("/")
    if not spelled:
        raise ValueError(f"the pattern {pattern!r} is empty: write a name, or * for all files")
    rest = spelled.removeprefix("**/")
    folders = _ANY_FOLDERS if rest != spelled or "/" not in spelled else ""
    parts = [_translate(part) for part in rest.split("/**/")]
    glob = f"/{_ANY_FOLDERS}".join(parts)
    return re.compile(f"(?s:{folders}(?:{glob}|{re.escape(spelled)})(?:/.*)?)")


def _translate(pattern: str) -> str:
    """The regular expression of a pattern, out of the `(?s:...)` and end mark around it."""
    return fnmatch.translate(pattern)[len("(?s:") : -len(r")\Z")]
