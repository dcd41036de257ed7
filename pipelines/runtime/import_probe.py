"""Imports of packages in a process of their own, so that a broken one cannot end this one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

IMPORT_SECONDS = 180.0
"""Longest time of all imports."""
_DEVICE = "torch"
"""The package whose import is followed by a look at the device."""


@dataclass
class Probe:
    """The outcome of the imports."""

    errors: dict[str, str | None] = field(default_factory=dict)
    """Error of each module; None if it was imported."""
    device: dict[str, Any] | None = None
    """Facts about the device: `type`, `names`, `memory`, `precision`, `threads`, `cuda`."""


def probe_imports(modules: Sequence[str]) -> Probe:
    """Import modules, and look at the device once torch is imported."""
    probe, left = Probe(), list(modules)
    while left:
        lines, ending = _run(left)
        begun = None
        for line in lines:
            begun = line.get("begin", begun)
            if "done" in line:
                probe.errors[line["done"]] = line["error"]
            probe.device = line.get("device", probe.device)
        if begun is None or begun in probe.errors:  # the process ended between two imports
            begun = next((name for name in left if name not in probe.errors), None)
        if begun is not None and begun not in probe.errors:
            probe.errors[begun] = ending
        left = [name for name in left if name not in probe.errors]
    return probe


def _run(modules: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """The lines that the process prints, and how it ended."""
    command = [sys.executable, "-m", __spec__.name, *modules]
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=IMPORT_SECONDS,
        )
        output, ending = result.stdout, f"its import ended the process ({_cause(result)})"
    except subprocess.TimeoutExpired as error:
        output, ending = error.stdout or b"", f"its import took more than {IMPORT_SECONDS:.0f} s"
    return [json.loads(line) for line in output.splitlines() if line.endswith(b"}")], ending


def _cause(result: subprocess.CompletedProcess[bytes]) -> str:
    code = result.returncode
    return f"signal {-code}" if code < 0 else f"status {code}"


# --- the process of its own ---


def _main(modules: Sequence[str]) -> None:
    """Import modules, and write a line of JSON before and after each one."""
    lines = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)

    def tell(**values: Any) -> None:
        lines.write(json.dumps(values) + "\n")
        lines.flush()

    for name in modules:
        tell(begin=name)
        error = None
        try:
            importlib.import_module(name)
            if name == _DEVICE:
                tell(device=_device())
        except Exception as cause:  # a broken package can raise anything
            error = " ".join(f"{type(cause).__name__}: {cause}".split())
        tell(done=name, error=error)


def _device() -> dict[str, Any]:
    import torch

    from bytelm.pipelines.runtime.device import resolve_precision, this_device

    device = this_device()
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else range(0)
    return {
        "type": device.type,
        "names": [torch.cuda.get_device_name(n) for n in gpus],
        "memory": [torch.cuda.get_device_properties(n).total_memory for n in gpus],
        "precision": resolve_precision(device, "auto"),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
    }


if __name__ == "__main__":
    _main(sys.argv[1:])
