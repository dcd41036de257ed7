"""The functions and files that the drawings on the architecture page name are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
HOPS = re.findall(r"^ *([\w.]+) +((?:\w+/)*\w+\.py) ", PAGE, re.MULTILINE)


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


def found(path: str) -> Path:
    """A file or folder of the page: relative to the repository, or to `pipelines/`."""
    return ROOT / path if (ROOT / path).exists() else ROOT / "pipelines" / path


def test_both_drawings_are_read() -> None:
    assert len(HOPS) > 30


@pytest.mark.parametrize(("name", "file"), HOPS, ids=lambda value: value)
def test_a_hop_is_a_function_of_its_file(name: str, file: str) -> None:
    assert name in defined(found(file))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", PAGE))))
def test_a_path_in_the_text_is_there(path: str) -> None:
    assert found(path).exists()
