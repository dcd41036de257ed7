"""Triton kernels of short attention: their numbers in the interpreter, and that they compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bytelm.model.attention_short import LONGEST

triton = pytest.importorskip("triton")
HELPER = Path(__file__).parents[1] / "helpers" / "interpreted_attention.py"
TOLERANCE = {"float32": 1e-5, "float16": 1e-2}


def test_outputs_and_gradients_are_those_of_plain_products() -> None:
    # Triton decides as it is imported whether it interprets.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, HELPER], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    cases = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(cases) > 10
    for case in cases:
        assert len(case["differences"]) == 5 if case["is_carried"] else 4
        assert max(case["differences"]) < TOLERANCE[case["dtype"]], case


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bytelm.model import attention_kernels

for kernel in (attention_kernels._forward, attention_kernels._backward):
    sizes = {"heads": 8, "n": 16, "r": 4, "c": 64, "rows": 64, "block": 64, "channels": 64}
    sizes |= {"earlier": 16, "following": 16}
    constants = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    signature = {}
    for name in kernel.arg_names:
        is_tensor = name.endswith("_ptr") or "carried" in name
        special = {"opens": "*i1", "lse_ptr": "*fp32"}
        kind = special.get(name, "*bf16" if is_tensor else "i32")
        signature[name] = "constexpr" if name in constants else kind
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert "mma" in compiled.asm["ptx"]
    print(compiled.metadata.shared)
"""


def test_kernels_compile_for_a_gpu_and_use_its_matrix_units(tmp_path: Path) -> None:
    """The interpreter takes more of Python than the compiler, which needs no GPU."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for shared_bytes in result.stdout.split():
        assert int(shared_bytes) <= 101_376, "more shared memory than a program may have"


def test_the_longest_short_sequence_fits_into_a_block() -> None:
    from bytelm.model.attention_kernels import BLOCK

    assert LONGEST == BLOCK
