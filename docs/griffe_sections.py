"""A Griffe extension for docstrings whose sections follow one another without an empty line."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(?=(?:Args|Attributes|Returns|Yields|Raises):$)", re.MULTILINE)


class SeparateSections(griffe.Extension):
    """Put an empty line before each section, which Griffe's parser needs."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SECTION.sub("\n", obj.docstring.value)
