"""`bytelm doctor`: what it finds on this machine, on a broken one, and on other systems."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import bytelm, environment, status

from bytelm.pipelines.runtime import doctor, platforms
from bytelm.pipelines.runtime.import_probe import Probe, probe_imports

DEVICE = {
    "type": "cpu",
    "names": [],
    "memory": [],
    "precision": "fp32",
    "threads": 2,
    "cuda": None,
}


def test_the_command_finds_that_this_machine_can_train() -> None:
    """It runs the tests, after all."""
    found = json.loads(bytelm("doctor", "--json").stdout)
    assert found["can_train"]
    assert found["can_generate"]
    assert found["device"]["type"] == "cpu"
    checks = {check["name"]: check for check in found["checks"]}
    assert {"python", "torch", "deepspeed", "memory", "TMPDIR", "/dev/shm", "serve"} < set(checks)
    assert checks["torch"]["status"] == "ok"
    assert all(c["remedy"] for c in found["checks"] if c["status"] in ("missing", "FAILED"))


def checks_with(
    monkeypatch: pytest.MonkeyPatch,
    errors: Mapping[str, str] = {},
    absent: tuple[str, ...] = (),
    versions: Mapping[str, str] = {},
) -> tuple[doctor.Diagnosis, dict[str, doctor.Check]]:
    """The result on a machine where imports fail, and packages are absent or of other versions."""
    device: dict[str, Any] | None = None if "torch" in (*errors, *absent) else DEVICE
    version = doctor._version
    monkeypatch.setattr(doctor, "probe_imports", lambda _: Probe(dict(errors), device))
    monkeypatch.setattr(
        doctor,
        "_version",
        lambda name: None if name in absent else versions.get(name, version(name)),
    )
    found = doctor.diagnose()
    return found, {check.name: check for check in found.checks}


def test_a_needed_package_that_is_absent_or_broken_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, checks = checks_with(
        monkeypatch, {"torch": "OSError: libcudart.so"}, ("einops",), {"numpy": "1.20.0"}
    )
    assert (found.can_train, found.can_generate) == (False, False)
    assert found.verdict == "bytelm cannot work here: torch, einops, numpy"
    assert "broken: OSError: libcudart.so" in checks["torch"].value
    assert checks["einops"].remedy.startswith("pip install 'einops>=")
    assert checks["numpy"].value.startswith("1.20.0, not >=")
    assert checks["device"].status == "note"
    assert status(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "  FAILED  einops " in shown
    assert "-> pip install 'einops>=" in shown


def test_without_deepspeed_a_model_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = checks_with(monkeypatch, absent=("deepspeed", "webdataset"))
    assert (found.can_train, found.can_generate) == (False, True)
    assert found.verdict.endswith("cannot train: deepspeed, webdataset")


def test_optional_parts_are_named_with_what_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found, checks = checks_with(monkeypatch, {"av": "ImportError: no libav"}, ("gradio",))
    assert found.can_train
    assert found.verdict == "bytelm can train and generate here, on the CPU (threads: 2) in fp32"
    assert (checks["serve"].status, checks["serve"].remedy) == (
        "missing",
        "pip install 'bytelm[serve]'",
    )
    assert checks["media"].status == "broken"
    assert "ImportError: no libav" in checks["media"].value
    assert checks["cjxl"].remedy == "apt-get install libjxl-tools"
    assert checks["compiler"].remedy == "apt-get install g++"
    assert checks["train.compile"].value == "no compiler: training is not compiled"


def test_folders_that_cannot_be_used_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    found, checks = checks_with(monkeypatch)
    assert found.can_train
    assert checks["disk"].value.startswith("cannot be told")
    assert "cannot be written to" in checks["TMPDIR"].value


def test_an_import_that_ends_its_process_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, code in {
        "raises": "raise RuntimeError('of two\\nlines')",
        "exits": "import sys; sys.exit(3)",
        "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "talks": "print('hello'); import sys; print('{}', file=sys.stderr)",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe_imports(["raises", "exits", "talks", "crashes", "absent", "zlib"])
    assert found.errors == {
        "raises": "RuntimeError: of two lines",
        "exits": "its import ended the process (status 3)",
        "talks": None,
        "crashes": "its import ended the process (signal 11)",
        "absent": "ModuleNotFoundError: No module named 'absent'",
        "zlib": None,
    }


def test_other_systems_are_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert status(["train", "run.yaml", "--out", "run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bytelm train: this command does not work on macOS: use Linux, WSL2")
    assert platforms.refusal("generate", "darwin") is None
    assert platforms.refusal("generate", "win32")
    assert platforms.refusal("doctor", "win32") is None
    assert platforms.refusal("train", "linux") is None


WINDOWS = """
import multiprocessing, os, select, signal, subprocess, sys, tempfile
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for module, names in {
    os: ("sched_getaffinity", "sysconf", "fork"),
    signal: ("SIGUSR1", "SIGKILL", "pthread_sigmask", "set_wakeup_fd"),
    select: ("poll",),
}.items():
    for name in names:
        delattr(module, name)
sys.platform = "win32"
from bytelm.pipelines.cli.main import main
sys.argv = ["bytelm", "train", "run.yaml", "--out", "run"]
print(main())
sys.argv = ["bytelm", "completion", "bash"]
main()
"""


def test_the_command_starts_on_a_system_without_the_calls_of_linux() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WINDOWS],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1\n")
    assert "_python_argcomplete" in result.stdout
    assert result.stderr.startswith(
        "bytelm train: this command does not work on Windows: use Linux"
    )
