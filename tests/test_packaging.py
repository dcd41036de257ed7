"""The wheel and the source archive hold the whole package and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = (".json", ".yaml", ".css", ".js", ".j2")
MODELS = Path("examples", "models")
FILES_OF_THE_BUILD = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's code, so that a build leaves nothing in the repository, with a
    model beside the bundled ones."""
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    folders = [ROOT / "bytelm", *(p.resolve() for p in (ROOT / "bytelm").iterdir() if p.is_dir())]
    for folder in folders:
        if folder.name != "__pycache__":
            target = source / folder.relative_to(ROOT)
            shutil.copytree(folder, target, symlinks=True, ignore=ignore)
    for name in ("model.safetensors", "config.json", "README.md", "NOTICE.md"):
        (source / MODELS / "second").mkdir(exist_ok=True)
        (source / MODELS / "second" / name).write_text("a stand-in")
    for name in FILES_OF_THE_BUILD:
        shutil.copy(ROOT / name, source)
    return source


def package_files(source: Path) -> set[str]:
    """Names of the code, data and models below `bytelm/`, links followed."""
    return {
        (Path(folder) / name).relative_to(source).as_posix()
        for folder, _, names in os.walk(source / "bytelm", followlinks=True)
        for name in names
        if name.endswith((".py", "py.typed", *DATA)) or Path(folder).parent.name == "models"
    }


def test_the_wheel_holds_the_package(source: Path, tmp_path: Path) -> None:
    expected = package_files(source)
    assert {"bytelm/py.typed", "bytelm/ds_configs/zero1.json", "bytelm/tools/demo.yaml"} < expected
    assert "bytelm/models/second/model.safetensors" in expected
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    build += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("bytelm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")
    assert names == expected

    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)

    assert str(tmp_path / "site") in run("-c", "import bytelm; print(bytelm.__file__)")
    assert "usage: bytelm" in run("-m", "bytelm", "--help")


def test_the_source_archive_holds_the_package(source: Path, tmp_path: Path) -> None:
    build = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (path,) = tmp_path.glob("bytelm-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert {name for name in names if name.startswith("bytelm/")} == package_files(source)
    assert {"pyproject.toml", "README.md", "LICENSE", "NOTICE"} <= names
    assert not {name for name in names if name.startswith("tests/")}
