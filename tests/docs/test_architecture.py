"""The functions and files that the drawings on the architecture page name are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
HOPS = re.findall(r"^ *([\w.]+) +((?:\w+/)+\w+\.py) ", PAGE, re.MULTILINE)


def defined(path: Path) -> set[str]:
    """Names of the functions and classes of a file, methods as `Class.method` and alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (n for n in node.body if isinstance(n, ast.FunctionDef))
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


def test_both_drawings_are_read() -> None:
    assert len(HOPS) > 30


@pytest.mark.parametrize(("name", "file"), HOPS, ids=lambda value: value)
def test_a_hop_is_a_function_of_its_file(name: str, file: str) -> None:
    assert name in defined(ROOT / file)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", PAGE))))
def test_a_path_in_the_text_is_there(path: str) -> None:
    """Paths are relative to the repository or to `pipelines/`."""
    assert (ROOT / path).exists() or (ROOT / "pipelines" / path).exists()
