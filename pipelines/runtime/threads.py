"""How the threads of a process wait for each other."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPINS = "2000"
"""Rounds in which a thread of OpenMP looks for work before it sleeps.

By default libgomp spins for 300,000, some milliseconds. On cores that other processes use too, a
thread then burns the time that the thread it waits for would need, and a step takes up to nine
times its fair share. Waking a sleeping thread costs a system call, so too few rounds slow down a
step that has the cores for itself: `tools/benchmarks/contention.py` measures both.
"""
WAIT_VARIABLE = "GOMP_SPINCOUNT"
USERS_VARIABLES = (WAIT_VARIABLE, "OMP_WAIT_POLICY")


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep soon, here and in processes started from here.

    libgomp reads the variable as it is loaded, so call this before torch is imported. A choice of
    the user's stays.
    """
    if not any(name in environment for name in USERS_VARIABLES):
        environment[WAIT_VARIABLE] = SPINS
