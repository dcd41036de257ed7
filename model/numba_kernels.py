"""Kernels of numba: functions that become machine code at their first call.

Numba keeps what it compiled beside the source (in NUMBA_CACHE_DIR if that is set, or below the
user's cache folder where the source's is read-only). It looks for changes in the file of a kernel
alone, not in those of what the kernel calls: what a kernel calls stands in the kernel's file, or in
modules that `kernel` is told.

Kernels allocate nothing, so that arrays need no counts of references, which numba would keep at
every call of a part and which cost more than the work between them.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

NOTICE_SECONDS = 2.0
"""Compilation that takes longer is announced."""
_OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy"}
"""`_nrt` is numba's runtime, which allocates and counts references. Divisions by zero give what
they give in NumPy: a check of each would keep loops from running in lanes."""


def kernel(function: Function, parts: Sequence[ModuleType] = ()) -> Function:
    """Compile what Python calls, at its first call; it runs without the interpreter's lock.

    A kernel is called with arguments of the same types everywhere: others are compiled anew.

    Args:
        parts: other modules with parts that the kernel calls, also by way of other parts.
    """
    if parts:  # numba names the cached code by the function: other parts, another name
        sources = "".join(map(inspect.getsource, parts))
        function.__qualname__ += "_" + hashlib.sha256(sources.encode()).hexdigest()[:16]
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # there is no folder in which a cache could be kept
        return numba.njit(**_OPTIONS)(function)


def kernel_part(
    function: Function, fastmath: Set[str] = frozenset(), is_inlined: bool = False
) -> Function:
    """Compile what kernels call; it is kept as a part of them.

    Args:
        fastmath: what the compiler may do to floating-point numbers, in LLVM's words.
        is_inlined: put it wherever it is called. A call of it otherwise copies its arguments, and
            an array is a dozen of them.
    """
    return numba.njit(fastmath=set(fastmath), forceinline=is_inlined, **_OPTIONS)(function)


@contextmanager
def compiling() -> Iterator[None]:
    """Say on stderr that kernels are compiled, where the body takes over NOTICE_SECONDS.

    A process says it once, and of the ranks of a machine only the first one.
    """
    notice = threading.Timer(NOTICE_SECONDS, _announce)
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


@functools.cache
def _announce() -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        notice = "compiling kernels, once on this machine (up to a minute)"
        print(notice, file=sys.stderr, flush=True)
