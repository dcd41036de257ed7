"""`bytelm.tools.compile_kernels` leaves no kernel to be compiled at first use."""

from __future__ import annotations

import subprocess
import sys

from helpers.commands import environment

SCRIPT = """
import importlib, pkgutil
from numba.core.dispatcher import Dispatcher

import bytelm.model
from bytelm.tools.compile_kernels import compile_kernels

compile_kernels()
for found in pkgutil.walk_packages(bytelm.model.__path__, "bytelm.model."):
    if found.name == "bytelm.model.attention_kernels":
        continue  # Triton's
    for name, kernel in vars(importlib.import_module(found.name)).items():
        is_own = getattr(kernel, "__module__", "") == found.name
        # Parts of kernels are not cached by themselves.
        if isinstance(kernel, Dispatcher) and is_own and kernel.stats.cache_path:
            print(name, len(kernel.signatures))
"""


def test_every_kernel_is_compiled_for_one_kind_of_arguments() -> None:
    line = [sys.executable, "-c", SCRIPT]
    lines = subprocess.check_output(line, env=environment(), text=True).splitlines()
    names = ["advance_rows", "code_ids", "draw_rows", "follow_guide", "mix_logits", "predict_ids"]
    names += ["push_ids", "read_ids", "read_row", "write_places"]
    assert sorted(lines) == [f"{name} 1" for name in names]
