"""The software and the machine that a command runs on, as plain values for a record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "deepspeed",
    "numpy",
    "numba",
    "webdataset",
    "safetensors",
    "pillow",
    "soundfile",
)
"""Packages whose versions decide what a run computes."""
_GIT_SECONDS = 5.0


def versions() -> dict[str, str]:
    """Versions of bytelm, Python and PACKAGES; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in ("bytelm", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the code that runs, with `+` if files were changed; None if installed."""
    folder = Path(__file__).resolve().parent
    arguments = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        result = subprocess.run(
            arguments, capture_output=True, text=True, check=False, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def machine() -> dict[str, Any]:
    """System, processor, usable cores, memory in bytes, and the names of the GPUs.

    The machine's name is not part of it: records are passed on.
    """
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "gpus": gpus,
    }


def peak_memory() -> dict[str, int]:
    """Largest memory of this process so far, in bytes: resident, and on its GPU if it has one."""
    import torch

    peak = {"resident": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
