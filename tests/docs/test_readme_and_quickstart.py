"""Every command and every line of Python in README.md and in the Quickstart runs.

They run as they stand but for NOT_RUN (`make test` runs this test and `make setup` has run, `make
demo` takes minutes, and `bytelm serve` runs until it is stopped) and SHORTENED, which would take
minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"
NOT_RUN = ("make setup", "make demo", "make test", "bytelm serve runs/first")
SHORTENED = {
    "--minutes 10": "--minutes 0.2",
    "bytelm train first.yaml": "bytelm train first.yaml --set train.steps=2",
}
CONSOLE = "console"
"""Blocks that are not run: the Quickstart shows README's first commands again."""
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, (language, content); what follows one another in one language
    is one."""
    found = FENCE.findall(page.read_text("utf-8"))
    assert {language for language, _ in found} - {CONSOLE} == {"sh", "python"}
    joined = groupby((block for block in found if block[0] != CONSOLE), key=lambda block: block[0])
    return [(language, "".join(content for _, content in group)) for language, group in joined]


def commands(block: str) -> str:
    """A shell block without the commands that are not run, and with the long ones shortened."""
    for text, shortened in SHORTENED.items():
        block = block.replace(text, shortened)
    return "\n".join(line for line in block.splitlines() if not line.startswith(NOT_RUN))


def run_page(page: Path, folder: Path) -> None:
    """Run a page's blocks in a folder, in order."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": paths, "OMP_NUM_THREADS": "1"}
    for language, block in blocks(page):
        program = ["bash", "-euo", "pipefail", "-c", commands(block)]
        if language == "python":
            program = [sys.executable, "-c", block]
        result = subprocess.run(
            program, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"


def copy(source: Path, target: Path, size: int | None = None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes()[:size])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the pages expect it: `examples`, `LICENSE`, and a few files of one's own."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    copy(ROOT / "LICENSE", tmp_path / "LICENSE")
    mine = tmp_path / "my-files"
    novel = DEMO / "text" / "train" / "moby-dick.txt"
    copy(novel, mine / "train" / "novel.txt", 100_000)
    copy(novel, mine / "val" / "letter.txt", 3_000)
    copy(ROOT / "NOTICE", mine / "notes.txt")
    for split, count in (("train", 12), ("val", 2)):
        for path in sorted((DEMO / "image" / split).iterdir())[:count]:
            copy(path, mine / split / path.name)
    for split, name in (("train", "sfx_bd_haus"), ("val", "sfx_elec_bell")):
        copy(DEMO / "audio" / split / f"{name}.flac", mine / split / f"{name}.flac")
    return tmp_path


def test_readme(folder: Path) -> None:
    run_page(ROOT / "README.md", folder)
    assert (folder / "drawn" / "image-000.png").stat().st_size > 0
    assert 0 < (folder / "license.blm").stat().st_size < (folder / "LICENSE").stat().st_size
    assert (folder / "notes.blm").stat().st_size > 0
    assert (folder / "runs" / "first" / "report.html").stat().st_size > 0
    assert (folder / "models" / "second" / "README.md").stat().st_size > 0
    (folder / "out" / "text-000.txt").read_text("utf-8")


def test_quickstart(folder: Path) -> None:
    run_page(ROOT / "docs" / "quickstart.md", folder)
    assert (folder / "restored" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (folder / "back" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (folder / "out" / "text-000.txt").read_text("utf-8").startswith("The whale ")


def test_only_the_known_commands_are_left_out_or_shortened() -> None:
    (sh,) = [block for language, block in blocks(ROOT / "README.md") if language == "sh"]
    left_out = [line for line in sh.splitlines() if line.startswith(NOT_RUN)]
    assert [line.split("  ")[0] for line in left_out] == list(NOT_RUN)
    assert all(sh.count(text) == 1 for text in SHORTENED)
    targets = [name.split()[1] for name in NOT_RUN if name.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
