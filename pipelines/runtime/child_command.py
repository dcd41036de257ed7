"""A command that this one runs and waits for, and that a request to stop reaches too."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from bytelm.pipelines.runtime.watchdog import NO_PATIENCE_LIMIT, Watchdog


def run_child(command: Sequence[str], *, is_captured: bool = False) -> tuple[int, str]:
    """Run a command of bytelm to its end.

    SIGTERM reaches this process alone, so it is handed on to the child, which may save before it
    ends. A child that does not end by itself is ended by its own watchdog.

    Args:
        is_captured: whether its output is returned instead of shown.
    Returns:
        its exit status, and its output.
    Raises:
        KeyboardInterrupt: once the child has ended, if this process was asked to stop.
    """
    Watchdog.of_process().patience = NO_PATIENCE_LIMIT
    stdout = subprocess.PIPE if is_captured else None
    request: KeyboardInterrupt | None = None
    with subprocess.Popen(command, text=True, stdout=stdout) as process:
        while process.returncode is None:
            try:
                output, _ = process.communicate()
            except KeyboardInterrupt as interrupt:
                request = interrupt
                # A terminal's Ctrl-C has reached the child already; SIGTERM then changes nothing.
                process.terminate()
    if request is not None:
        raise request
    return process.returncode, output or ""
