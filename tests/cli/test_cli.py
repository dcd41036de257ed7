"""The command line as people meet it: help at once, one line and a status for mistakes."""

from __future__ import annotations

import argparse
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from helpers.commands import bytelm, command, environment
from helpers.processes import hear_interrupts

from bytelm.pipelines.cli import main

COMMANDS = (
    "prepare",
    "merge",
    "inspect",
    "index",
    "init",
    "config",
    "plan",
    "train",
    "evaluate",
    "report",
    "generate",
    "compress",
    "decompress",
    "serve",
    "export",
    "calibrate",
    "push",
    "demo",
    "doctor",
    "completion",
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
        "heavy = {'torch', 'deepspeed', 'torchaudio', 'numpy', 'rich'}\n"
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


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("", "bytelm: a command is missing: one of prepare, merge, inspect"),
        ("fly", "bytelm: unknown command 'fly': there are prepare, merge, inspect"),
        ("trian", "bytelm: unknown command 'trian': did you mean train?"),
        ("--fly", "bytelm: the following arguments are required: COMMAND"),
        ("train c", "bytelm train: the following arguments are required: --out"),
        ("generate m --out o", "bytelm generate: the following arguments are required: --modality"),
        ("train c --out o --stepps 3", "bytelm train: unknown option --stepps"),
        ("train c --out o --resum=1", "bytelm train: --resume: ignored explicit argument '1'"),
        ("train c --out o --process=2 -x", "bytelm train: unknown option -x"),
        ("prepare a --out o --exlude b", "bytelm prepare: unknown option --exlude: did you mean "),
        ("prepare a --out o b", "bytelm prepare: 'b' is one too many, or stands apart from those"),
        ("prepare a --out", "bytelm prepare: --out: expected one argument"),
        (f"generate m --modality text --out {__file__}", "bytelm generate: --out is "),
        (f"decompress m f.blm --out {__file__}", "bytelm decompress: --out is "),
        (f"inspect s --extract 1 --out {__file__}", "bytelm inspect: --out is "),
        ("demo --foo", "bytelm demo: unknown option --foo"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(line: str, refusal: str) -> None:
    (error,) = bytelm(*line.split(), status=2).stderr.splitlines()
    assert error.startswith(refusal)
    assert error.endswith(f"(see {refusal.partition(':')[0]} --help)")


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


def test_a_terminated_command_says_so(tmp_path: Path) -> None:
    fifo = tmp_path / "config.yaml"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        command("plan", fifo), env=environment(), stderr=subprocess.PIPE, text=True
    )
    with open(fifo, "w"):
        time.sleep(0.3)
        process.terminate()
        _, error = process.communicate(timeout=30)
    assert process.returncode == 143
    assert error == "bytelm plan: ended by SIGTERM\n"


def test_a_termination_that_an_import_drops_still_ends_the_command(tmp_path: Path) -> None:
    """numpy and others catch everything while they are imported, and are half there afterwards."""
    program = """
import os, signal, sys
from bytelm.pipelines.cli import main
def run(options, argv):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        pass
    raise AttributeError("half of a module")
main.COMMANDS["plan"].run = run
sys.argv = ["bytelm", "plan", "config.yaml"]
sys.exit(main.main())
"""
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.stderr == "bytelm plan: ended by SIGTERM\n"
    assert process.returncode == 143


class Unforeseen(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        OverflowError("cannot convert float infinity to integer"),
        ModuleNotFoundError("No module named 'mpi4py'"),
        ZeroDivisionError("division by zero"),
        RecursionError("maximum recursion depth exceeded"),
        struct.error("argument out of range"),
        UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed"),
        AssertionError("ours"),
        KeyError("key"),
        Unforeseen("of two\nlines"),
    ],
)
def test_an_unforeseen_error_is_one_line_and_its_traceback_is_kept(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: argparse.Namespace, argv: list[str]) -> int:
        raise error

    monkeypatch.delenv("BYTELM_TRACEBACK", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(main.COMMANDS["inspect"], "run", fail)
    assert main.main(["inspect", "set"]) == 1
    line = capsys.readouterr().err
    (kept,) = tmp_path.glob("bytelm-traceback-*.txt")
    assert line.startswith(f"bytelm inspect: unexpected {type(error).__name__}: ")
    assert line.endswith(f"(traceback: {kept}; please report it)\n")
    assert line.count("\n") == 1
    assert "raise error" in kept.read_text()
    monkeypatch.setenv("BYTELM_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main.main(["inspect", "set"])


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("a mistake"), 2), (RuntimeError("a failure"), 1), (OSError("a disk"), 1)],
)
def test_a_foreseen_error_is_its_text_alone(
    error: Exception,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: argparse.Namespace, argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(main.COMMANDS["inspect"], "run", fail)
    assert main.main(["inspect", "set"]) == status
    assert capsys.readouterr().err == f"bytelm inspect: {error}\n"


def test_a_reader_that_ends_early_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command("prepare", tmp_path / "a.txt", "--out", tmp_path / "set"),
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
