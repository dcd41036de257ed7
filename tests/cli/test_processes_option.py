"""`--processes` of a number that the machine cannot serve."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.commands import status


@pytest.mark.parametrize("command", ["evaluate", "generate", "compress", "decompress"])
def test_far_more_processes_than_processors_are_refused(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    options = {
        "evaluate": ["--data", "x"],
        "generate": ["--modality", "text", "--out", str(tmp_path)],
        "compress": ["x", "--out", "y"],
        "decompress": ["x", "--out", str(tmp_path)],
    }
    assert status([command, "model", *options[command], "--processes", "99"]) == 2
    error = capsys.readouterr().err
    assert "a machine of 2 processors" in error
    assert "use --processes 2" in error
