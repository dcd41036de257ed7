"""`bytelm demo`: a stop ends its training too, and the same command continues in its folder."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import command, environment, metrics
from helpers.processes import MARK, hear_interrupts, kill_marked, marked, wait_until_gone

from bytelm.tools.repository import DEMO_FILES

END_SECONDS = 60.0
OWN_FILE = "thesis.txt"


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file of the user's own. The demo's processes are killed after the test."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / OWN_FILE).write_text("not of the demo")
    yield folder
    kill_marked(str(tmp_path))


def stop_at_first_step(out: Path, number: int, *, is_of_terminal: bool) -> tuple[int, list[str]]:
    """Run the demo until its training has taken a step, and ask it to stop; returns its exit
    status and the lines that it printed."""
    mark = str(out.parent)
    process = subprocess.Popen(
        command("demo", "--data", DEMO_FILES, "--out", out),
        env={**environment(), MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_interrupts,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step ") and "loss" in line:
            break
    if is_of_terminal:  # which sends Ctrl-C to all of them
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    lines += process.communicate(timeout=END_SECONDS)[0].splitlines()
    wait_until_gone(marked(mark), END_SECONDS)
    return process.returncode, lines


def test_a_demo_that_was_stopped_continues_and_keeps_other_files(out: Path) -> None:
    status, lines = stop_at_first_step(out, signal.SIGTERM, is_of_terminal=False)
    assert (status, lines[-1]) == (143, "bytelm demo: ended by SIGTERM")
    assert (out / OWN_FILE).exists()
    done = metrics(out / "run")[-1]["step"]

    status, lines = stop_at_first_step(out, signal.SIGINT, is_of_terminal=True)
    assert (status, lines[-1]) == (130, "bytelm demo: interrupted")
    assert metrics(out / "run")[-1]["step"] > done
    assert any("resumed from" in line for line in lines)
    assert (out / OWN_FILE).exists()
