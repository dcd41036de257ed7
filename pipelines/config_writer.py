"""Write a config as YAML with a comment for each key, which `load_config` reads back."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

WIDTH = 88
_PLAIN = re.compile(r"[A-Za-z./_~][\w./~+-]*(?: [\w./~+-]+)*")
_WORDS = {"true", "false", "null", "on", "off", "yes", "no", "y", "n"}
"""Texts that some YAML readers take for other values."""


def commented_yaml(values: Mapping[str, Any], comments: Mapping[str, str], head: str) -> str:
    """Write sections of values, each value below its comment.

    Args:
        values: the sections of a config, as plain values; None is written as a key's absence.
        comments: by `section.key`, or by `section` for a section that is a single value.
        head: comment on top; a line of its own for each of its lines.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    for section, inner in values.items():
        lines.append("")
        if section in comments:
            lines += comment_lines(comments[section], "")
        if isinstance(inner, Mapping):
            lines.append(f"{section}:")
            lines += _section_lines(section, inner, comments)
        else:
            lines.append(f"{section}: {scalar(inner)}")
    return "\n".join(lines) + "\n"


def comment_lines(text: str, indent: str) -> list[str]:
    """Wrap a text as lines of a comment."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,  # names of options
        break_long_words=False,
    )


def scalar(value: Any) -> str:
    """Write a single value, or a list or mapping of them, on one line."""
    if isinstance(value, Mapping):
        inner = (f"{key}: {scalar(v)}" for key, v in value.items() if v is not None)
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and math.isinf(value):
        return ".inf"
    return json.dumps(value)


def with_train_values(text: str, values: Mapping[str, tuple[int, str]]) -> str:
    """Replace whole numbers of the section `train` in a text of `commented_yaml`.

    Args:
        values: the new number of a key, and a remark to stand behind it.
    """
    lines = text.split("\n")
    for key, (value, remark) in values.items():
        found = [i for i, line in enumerate(lines) if line.startswith(f"  {key}: ")]
        assert len(found) == 1, f"{key} stands {len(found)} times in the config"
        lines[found[0]] = f"  {key}: {value}" + (f"  # {remark}" if remark else "")
    return "\n".join(lines)


def _section_lines(
    section: str, values: Mapping[str, Any], comments: Mapping[str, str]
) -> Iterator[str]:
    for key, value in values.items():
        if value is None:
            continue
        if comment := comments.get(f"{section}.{key}"):
            yield from comment_lines(comment, "  ")
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            yield f"  {key}:"
            yield from (f"    - {scalar(item)}" for item in value)
        else:
            yield f"  {key}: {scalar(value)}"
