"""The house's own rules: imports go one way, every folder is packaged, nothing names a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ds_configs", "modalities", "model", "pipelines", "tools")
MAY_IMPORT = {
    "modalities": {"modalities"},
    "model": {"model"},
    "pipelines": {"modalities", "model", "pipelines", "ds_configs"},
    "tools": {"modalities", "model", "pipelines", "ds_configs", "tools"},
    "ds_configs": set(),
}
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).glob("*.py"))


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_imports_go_one_way(path: Path) -> None:
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("bytelm.")}
    assert ours <= MAY_IMPORT[path.parent.name]
    if path != ROOT / "pipelines" / "engine.py":
        assert not any(name.split(".")[0] == "deepspeed" for name in names)
    if path.parent.name == "model":
        allowed = {"torch", "einops", "numpy", "safetensors", "huggingface_hub", "bytelm"}
        third_party = {name.split(".")[0] for name in names} - set(_standard_library())
        assert third_party <= allowed


def _standard_library() -> frozenset[str]:
    import sys

    return sys.stdlib_module_names


def test_every_folder_is_packaged_and_linked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {f"bytelm.{folder}" for folder in FOLDERS}
    with_code = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert with_code == set(FOLDERS)
    assert set(project["tool"]["setuptools"]["packages"]) == packages
    assert project["tool"]["setuptools"]["package-dir"] == {p: p.split(".")[1] for p in packages}
    for folder in FOLDERS:
        assert (ROOT / ".namespace" / "bytelm" / folder).resolve() == ROOT / folder


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not in a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_files_stay_readable_and_name_no_machine() -> None:
    for path in tracked():
        if path.suffix not in {".py", ".md", ".toml", ".yaml", ".json"} or not path.is_file():
            continue
        lines = path.read_text("utf-8").splitlines()
        if path.suffix == ".py":
            assert len(lines) <= 500, f"{path} has {len(lines)} lines"
        for number, line in enumerate(lines, 1):
            assert not re.search(r"(?<![\w.])/(work|root|home|opt)/", line), f"{path}:{number}"
