"""The command line as people meet it: help at once, one line and a status for mistakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import bytelm, command, environment
from helpers.processes import hear_interrupts

COMMANDS = (
    "prepare",
    "inspect",
    "index",
    "plan",
    "train",
    "evaluate",
    "generate",
    "compress",
    "decompress",
    "export",
    "demo",
)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    shown = bytelm("--help").stdout
    for name in COMMANDS:
        assert f"    {name}" in shown
    probe = (
        "import sys\n"
        "from bytelm.pipelines.cli import main\n"
        f"for name in {COMMANDS}:\n"
        "    try: main.main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'deepspeed', 'torchaudio', 'numpy', 'rich', 'jsonargparse'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    for name in COMMANDS:
        assert f"usage: bytelm {name}" in loaded.stdout
    assert loaded.stdout.splitlines()[-1] == "[]"


def test_help_shows_the_default_of_options_that_have_one() -> None:
    shown = " ".join(bytelm("generate", "--help").stdout.split())
    assert "length of a sound in seconds, prompt included (default: 1.0)" in shown
    assert "(default: None)" not in shown
    assert "(default: False)" not in shown


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train"], ["generate", "m", "--out", "o"]])
def test_a_wrong_command_line_is_status_2(arguments: list[str]) -> None:
    assert "usage: bytelm" in bytelm(*arguments, status=2).stderr


def test_an_interrupted_command_says_so(tmp_path: Path) -> None:
    """Ctrl-C while a command reads its input from a pipe that nobody writes."""
    fifo = tmp_path / "config.yaml"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        command("plan", fifo),
        env=environment(),
        preexec_fn=hear_interrupts,
        stderr=subprocess.PIPE,
        text=True,
    )
    with open(fifo, "w"):  # opens once the command reads
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "bytelm plan: interrupted\n"
