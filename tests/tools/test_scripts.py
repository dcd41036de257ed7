"""Scripts: each documents its command, imports no other script, and prints figures as JSON."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import environment

from bytelm.tools.benchmarks.measure import Figure, print_figures
from bytelm.tools.repository import ROOT

TOOLS = ROOT / "tools"


def is_script(path: Path) -> bool:
    return 'if __name__ == "__main__":' in path.read_text("utf-8")


def module_of(path: Path) -> str:
    """Dotted name of a file below `tools/`."""
    return ".".join(["bytelm", *path.relative_to(ROOT).with_suffix("").parts])


SCRIPTS = {module_of(path): path for path in sorted(TOOLS.rglob("*.py")) if is_script(path)}


@pytest.mark.parametrize("module", SCRIPTS)
def test_a_script_documents_its_command_and_imports_no_script(module: str) -> None:
    tree = ast.parse(SCRIPTS[module].read_text("utf-8"))
    documentation = ast.get_docstring(tree) or ""
    assert re.search(rf"^    python -m {re.escape(module)}\b", documentation, re.MULTILINE)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & SCRIPTS.keys()


def test_the_readme_lists_every_script() -> None:
    readme = (TOOLS / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| `(bytelm\.tools[\w.]+)", readme, re.MULTILINE)
    assert sorted(listed) == sorted(SCRIPTS)


def test_figures_are_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_figures([Figure("a", 3.0, "s", 2.0, {"spread": None}), Figure("b", 1, "rows")])
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first) == {
        "name": "a",
        "value": 3.0,
        "unit": "s",
        "reference": 2.0,
        "ratio": 1.5,
        "spread": None,
    }
    assert json.loads(second) == {
        "name": "b",
        "value": 1,
        "unit": "rows",
        "reference": None,
        "ratio": None,
    }


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("plan", "3", "5"), {"plan/open", "plan/rows", "plan/random-row-worst", "plan/memory"}),
        (("loader", "--sizes", "64KiB", "--megabytes", "1"), {"loader/64KiB"}),
        (
            ("features", "--megabytes", "0.1"),
            {"features/text", "features/image/step/256", "features/audio/loader"},
        ),
        (("prepare", "--seconds", "0.01"), {"prepare/text/1", "prepare/audio/2"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_small_benchmark_prints_its_figures(arguments: tuple[str, ...], names: set[str]) -> None:
    command = [sys.executable, "-m", f"bytelm.tools.benchmarks.{arguments[0]}", *arguments[1:]]
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    figures = [json.loads(line) for line in result.stdout.splitlines()]
    assert names <= {figure["name"] for figure in figures}
    assert all(figure["value"] >= 0 for figure in figures)
