"""Who can decode a container: the model that coded it, and the build that computed its numbers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from pathlib import Path

import torch

from bytelm.model.megabyte import Megabyte
from bytelm.model.stored_names import stored_config, stored_parameter
from bytelm.pipelines.compression.container import HASH_BYTES

_PACKAGES = ("bytelm", "constriction", "numba", "llvmlite")
"""Packages beside PyTorch that decide how a step rounds, or what is coded for its numbers."""
STEP_VERSION = 7
"""Version of the order in which a step adds up its numbers; to raise where that order changes."""


def model_hash(model: Megabyte) -> bytes:
    """The first HASH_BYTES of the SHA-256 of a model's config and weights."""
    digest = hashlib.sha256(json.dumps(stored_config(model.config), sort_keys=True).encode())
    tensors = {stored_parameter(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.digest()[:HASH_BYTES]


def build_of(model: Megabyte) -> str:
    """The versions and the machine that decide the last bits of a model's probabilities."""
    device = model.lm_head.weight.device
    versions = " ".join(f"{n} {importlib.metadata.version(n)}" for n in _PACKAGES)
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{_processor()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{versions} step {STEP_VERSION} torch {torch.__version__} on {machine}"


def _processor() -> str:
    """The processor's name if the system tells it, its architecture otherwise."""
    try:
        line = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        line = None
    return line[1].strip() if line else platform.machine()
