"""The house's own rules: imports go one way, every folder is packaged, nothing names a machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BELOW_CONFIG = {
    *{"modalities", "pipelines/errors.py", "pipelines/runtime", "pipelines/storage"},
    "pipelines/shards",
}
UP_TO_DATA = {*BELOW_CONFIG, "model", "pipelines/data"}
UP_TO_TRAINING = {
    *UP_TO_DATA,
    *{"ds_configs", "pipelines/config.py", "pipelines/checkpoints", "pipelines/evaluation"},
    *{"pipelines/config_schema.py", "pipelines/config_writer.py", "pipelines/training"},
}
UP_TO_COMPRESSION = {
    *UP_TO_TRAINING,
    *{"pipelines/prepare", "pipelines/generation", "pipelines/compression"},
}
UP_TO_SERVING = {*UP_TO_COMPRESSION, "pipelines/reporting", "pipelines/serving"}
MAY_IMPORT: dict[str, set[str]] = {
    "ds_configs": set(),
    "modalities": set(),
    "model": set(),
    "pipelines/errors.py": set(),
    "pipelines/runtime": {"pipelines/errors.py"},
    "pipelines/storage": {"pipelines/errors.py"},
    "pipelines/shards": BELOW_CONFIG - {"pipelines/shards"},
    "pipelines/config_file.py": set(),
    "pipelines/config_values.py": set(),
    "pipelines/config.py": {
        *{"model", "pipelines/shards", "pipelines/storage"},
        *{"pipelines/config_file.py", "pipelines/config_values.py"},
    },
    "pipelines/config_schema.py": {"model", "pipelines/config.py", "pipelines/config_values.py"},
    "pipelines/config_writer.py": set(),
    "pipelines/prepare": BELOW_CONFIG,
    "pipelines/data": {*BELOW_CONFIG, "model/codec_features", "model/layout"},
    "pipelines/checkpoints": {
        *{"model", "pipelines/data", "pipelines/shards", "pipelines/storage"},
        *{"pipelines/errors.py", "pipelines/runtime"},
    },
    "pipelines/evaluation": {*UP_TO_DATA, "pipelines/checkpoints", "pipelines/config.py"},
    "pipelines/generation": {*UP_TO_DATA, "pipelines/evaluation"},
    "pipelines/compression": UP_TO_DATA,
    "pipelines/training": {*UP_TO_TRAINING, "pipelines/generation"},
    "pipelines/reporting": UP_TO_COMPRESSION,
    "pipelines/serving": {*UP_TO_COMPRESSION, "pipelines/reporting"},
    "pipelines/cli": {*UP_TO_SERVING, "bytelm"},
    "bytelm": {*UP_TO_SERVING, "pipelines/cli"},
    "tools": {*UP_TO_SERVING, "bytelm", "pipelines/cli"},
}
"""Layers that each layer may import beside itself; `tools` may import all, nothing imports it."""
TOP = ("bytelm", "ds_configs", "modalities", "model", "pipelines", "tools")


def sources(root: Path) -> list[Path]:
    """Every file of code below a root, at any depth; links are not followed."""
    found = []
    for folder in TOP:
        for parent, folders, names in os.walk(root / folder):
            folders[:] = [f for f in folders if not (Path(parent) / f).is_symlink()]
            found += [Path(parent) / name for name in names if name.endswith(".py")]
    return sorted(found)


def layer_of(relative: str) -> str | None:
    """The layer that a file or module belongs to; None for the bare packages."""
    for layer in sorted(MAY_IMPORT, key=len, reverse=True):
        stem = layer.removesuffix(".py")
        if relative.removesuffix(".py") == stem or relative.startswith(stem + "/"):
            return layer
    return None


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


def violations(root: Path) -> list[str]:
    """A line for each import that the table does not allow."""
    wrong = []
    for path in sources(root):
        relative = path.relative_to(root).as_posix()
        layer = layer_of(relative)
        for name in sorted(imported(path)):
            first, *rest = name.split(".")
            if first in TOP and first != "bytelm":
                wrong.append(f"{relative} imports {name}, which is installed as bytelm.{name}")
            if first != "bytelm" or layer is None:
                continue
            target = "/".join(rest)
            # A name of the package itself, as `bytelm.__version__`, belongs to its face.
            above = layer_of(target) if rest and rest[0] in TOP else "bytelm"
            allowed = {layer, *MAY_IMPORT[layer]}
            if above not in allowed and not any(target.startswith(f"{a}/") for a in allowed):
                wrong.append(f"{relative} imports {name}")
    return wrong


def test_imports_go_one_way() -> None:
    assert len(sources(ROOT)) > 100
    assert not violations(ROOT)


@pytest.mark.parametrize(
    ("relative", "line"),
    [
        ("modalities/planted.py", "from bytelm.pipelines.errors import DamageError"),
        ("model/decoding/planted.py", "import bytelm.pipelines.runtime.device"),
        ("model/a/b/c/planted.py", "    from bytelm.modalities import MODALITIES"),
        ("pipelines/data/deep/planted.py", "    from bytelm.model.megabyte import Megabyte"),
        ("pipelines/shards/planted.py", "from bytelm.pipelines import config"),
        ("pipelines/training/planted.py", "from bytelm.pipelines.cli import main"),
        ("pipelines/training/planted.py", "from bytelm.tools import demo"),
        ("pipelines/storage/planted.py", "from bytelm import load"),
        ("pipelines/storage/planted.py", "from tools import demo"),
    ],
)
def test_a_planted_upward_import_is_found(relative: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / relative
    path.parent.mkdir(parents=True)
    path.write_text(f"def late() -> None:\n{line}\n" if line[0] == " " else f"{line}\n")
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize("path", sources(ROOT), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_a_file_depends_on(path: Path) -> None:
    names = {name.split(".")[0] for name in imported(path)}
    relative = path.relative_to(ROOT).as_posix()
    if not relative.startswith("pipelines/training/"):
        assert "deepspeed" not in names
    if relative.startswith("model/"):
        allowed = {"torch", "einops", "numpy", "numba", "bytelm"}
        if relative == "model/attention_kernels.py":
            allowed.add("triton")
        assert names - sys.stdlib_module_names <= allowed
    assert path.stem not in (sys.stdlib_module_names | WELL_KNOWN)


WELL_KNOWN = frozenset({"requests", "yaml", "numpy", "torch", "rich", "fsspec", "einops", "PIL"})


def test_every_folder_of_code_is_linked_and_a_package() -> None:
    with_code = {p.relative_to(ROOT).parts[0] for p in sources(ROOT)}
    assert with_code == set(TOP)
    for folder in TOP[1:]:
        assert (ROOT / "bytelm" / folder).resolve() == ROOT / folder
    for path in sources(ROOT):
        assert (path.parent / "__init__.py").is_file()


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
