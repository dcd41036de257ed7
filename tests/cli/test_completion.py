"""Completion in shells: what is offered, and that it loads nothing heavy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import bytelm, environment

PROBE = """
import os, sys
import bytelm.pipelines.cli.main as main
exit = os._exit
def report(status):
    heavy = {"torch", "numpy", "rich", "yaml", "deepspeed"} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
    exit(status)
os._exit = report
main.main([])
"""


def offered(line: str, folder: Path) -> set[str]:
    """The completions that are offered behind a line that was typed so far."""
    answer = folder / "answer"
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    result = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**environment(), **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "heavy: []" in result.stderr
    return {word.strip() for word in answer.read_text().split("\n")}


def test_commands_options_and_choices_are_offered(tmp_path: Path) -> None:
    assert offered("bytelm ev", tmp_path) == {"evaluate"}
    assert {"--split", "--scoring"} == offered("bytelm evaluate model --s", tmp_path)
    assert {"text", "image", "audio"} == offered("bytelm generate model --modality ", tmp_path)


def test_files_are_offered_for_paths(tmp_path: Path) -> None:
    (tmp_path / "whales.yaml").write_text("")
    assert "whales.yaml" in offered("bytelm plan wh", tmp_path)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_source_what_the_command_prints(shell: str) -> None:
    lines = bytelm("completion", shell).stdout
    assert "bytelm" in lines
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} on this machine")
    check = "complete -p bytelm" if shell == "bash" else "true"
    begin = "autoload -U compinit; compinit -u\n" if shell == "zsh" else ""
    result = subprocess.run(
        [program, "-c", f"{begin}{lines}\n{check}"],
        env={**os.environ, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_another_shell_is_refused() -> None:
    (line,) = bytelm("completion", "powershell", status=2).stderr.splitlines()
    assert "choose from bash, zsh, fish" in line.replace("'", "")
