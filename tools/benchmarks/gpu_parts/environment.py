"""The code, the libraries and the machine that figures belong to, and its speed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import suppress

import torch

from bytelm.pipelines.runtime.environment import commit, machine, versions
from bytelm.tools.benchmarks.gpu_parts.scale import Scale, product_flops
from bytelm.tools.benchmarks.measure import Figure

COMPARED = ("triton", "numba", "mblm", "MEGABYTE-pytorch")
"""Further packages that the figures depend on."""


def environment_figures(scale: Scale) -> Iterator[Figure]:
    """The number of GPUs with commit, versions and machine as its details; the product's FLOP/s, to
    which all shares refer (each part measures it again)."""
    packages = versions()
    for name in COMPARED:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    details = {"commit": commit(), "versions": packages, "machine": machine()}
    details["cuda"] = torch.version.cuda
    yield Figure("environment", torch.cuda.device_count(), "GPUs", details=details)
    yield Figure("environment/product", product_flops(scale), "FLOP/s")
