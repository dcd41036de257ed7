"""The memory that this process may still take."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Files of version 2 and of version 1 of control groups with the limit, with what is in use, and
with the part of it, under a name, that is only cached."""


def available_bytes() -> int:
    """Return the free memory of this process's GPU, or of the machine within its control group."""
    import torch

    from bytelm.pipelines.runtime.device import this_device

    device = this_device()
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_free_bytes()


def sharing_ranks() -> int:
    """Return the number of ranks that share `available_bytes`: those of this machine on a CPU; on
    a GPU one, since each has its own."""
    from bytelm.pipelines.runtime.device import this_device

    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if this_device().type == "cpu" else 1


def host_free_bytes() -> int:
    """Return the free memory of the machine within its control group."""
    return min([_machine_bytes(), *_group_bytes(_GROUP)])


def host_limit_bytes() -> int:
    """Return the memory of the machine, or the limit of its control group if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name, *_ in _CGROUPS:
        with suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int((_GROUP / name).read_text()))
    return min(limits)


def _machine_bytes() -> int:
    """Memory that the kernel could give, caches included; all of it where the kernel says none."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_bytes(folder: Path) -> list[int]:
    """Bytes that the limit of the control group leaves; none where there is none."""
    for limit, used, statistics, cached in _CGROUPS:
        try:
            values = dict(line.split() for line in (folder / statistics).read_text().splitlines())
            in_use = int((folder / used).read_text()) - int(values[cached])
            return [int((folder / limit).read_text()) - in_use]
        except (OSError, ValueError, KeyError):  # absent, or "max"
            continue
    return []
