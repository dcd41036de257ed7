"""Resident memory of this process, from Linux' proc files."""

from pathlib import Path


def resident() -> int:
    """Bytes that are resident now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """The most bytes that were resident since the start or the last `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Lets `peak_resident` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(kilobytes)
