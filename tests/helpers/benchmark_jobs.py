"""Jobs that end in every way a measurement can; a process of its own imports them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bytelm.tools.benchmarks.measure import Figure


def measure_two(name: str) -> Iterator[Figure]:
    print("a library that prints")
    yield Figure(f"{name}/first", 1.0, "s")
    yield Figure(f"{name}/second", 2.0, "s")


def raise_an_error() -> Iterator[Figure]:
    yield Figure("error/first", 1.0, "s")
    raise RuntimeError("out of memory\nand a long trace")


def die() -> Iterator[Figure]:
    yield Figure("death/first", 1.0, "s")
    os._exit(3)


def hang_with_a_child(pid_file: Path) -> Iterator[Figure]:
    """Yield a figure, start a process as compilers do, write its id, and never end."""
    yield Figure("hang/first", 1.0, "s")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pid_file.write_text(str(child.pid))
    time.sleep(600)
