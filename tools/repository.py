"""The repository's folders, and the command `bytelm` run on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO_FILES = ROOT / "examples" / "demo"
"""A folder for each of `text`, `image` and `audio`, with `train` and `val` below."""


def run_bytelm(*arguments: object, **environment: str) -> None:
    """Run `bytelm ARGUMENTS` without its output; raises CalledProcessError if it fails.

    Args:
        environment: variables to set beside those of this process.
    """
    command = [sys.executable, "-m", "bytelm", *map(str, arguments)]
    variables = {**os.environ, **environment}
    subprocess.run(command, check=True, stdout=subprocess.PIPE, env=variables)
