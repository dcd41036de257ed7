"""Systems that bytelm runs on: Linux, and parts of it elsewhere."""

from __future__ import annotations

import sys

WAY_OUT = "use Linux, WSL2 (`wsl --install`) or a container (`docker run -it python:3.12`)"
ANYWHERE = ("doctor", "completion")
"""Commands that need no file locks (fcntl) either."""
LINUX_ONLY = ("prepare", "merge", "train", "demo")
"""Commands that need memfd_create(2), processes made by fork(2), and DeepSpeed."""
_NAMES = {"darwin": "macOS", "win32": "Windows", "cygwin": "Cygwin"}


def system_name(platform: str = sys.platform) -> str:
    """The name of a system for people."""
    return _NAMES.get(platform, "Linux" if platform.startswith("linux") else platform)


def is_supported(platform: str = sys.platform) -> bool:
    """Whether all of bytelm runs on a system."""
    return platform.startswith("linux")


def refusal(command: str, platform: str = sys.platform) -> str | None:
    """Why a command cannot run on a system, and the way out; None where it can."""
    if is_supported(platform) or command in ANYWHERE:
        return None
    if platform == "darwin" and command not in LINUX_ONLY:
        return None
    return f"this command does not work on {system_name(platform)}: {WAY_OUT}"


def limits_elsewhere(platform: str = sys.platform) -> str:
    """A sentence that says which commands do not work on a system that is not Linux."""
    if platform == "darwin":
        return f"{', '.join(LINUX_ONLY)} do not work on macOS, and the other commands are untested"
    return f"only {' and '.join(ANYWHERE)} work on {system_name(platform)}"
