"""Read and check the DeepSpeed JSON that a run names: a case of `ds_configs`, or a file."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

OWNED_BY_RUN_CONFIG = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch",
    "gradient_clipping": "optimizer.max_grad_norm",
    "optimizer": "optimizer",
    "scheduler": "optimizer",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
    "communication_data_type": "train.communication",
}
"""DeepSpeed's keys that are derived from the run's config, with the key to set instead."""
OWNED_BY_DEEPSPEED_CONFIG = ("zero_optimization", "zero_force_ds_cpu_optimizer")
"""The keys that the JSON may contain."""


def deepspeed_config(name: str) -> dict[str, Any]:
    """Read the JSON of a case of `ds_configs`, or of a path that ends in `.json`.

    Raises:
        ValueError: if there is no such case or file, if it is no JSON, or if it has a key that the
            run's config owns or that is unknown.
    """
    text = _read(name)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"DeepSpeed config {name} is no JSON: {error}") from error
    for key in values:
        if key in OWNED_BY_RUN_CONFIG:
            raise ValueError(
                f"DeepSpeed config {name} sets {key!r}, which the run's config owns: "
                f"remove it and set {OWNED_BY_RUN_CONFIG[key]}"
            )
        if key not in OWNED_BY_DEEPSPEED_CONFIG:
            known = ", ".join(OWNED_BY_DEEPSPEED_CONFIG)
            raise ValueError(f"DeepSpeed config {name} has an unknown key {key!r}; known: {known}")
    return values


def zero_stage(name: str) -> int:
    """Return the ZeRO stage of a DeepSpeed config, 0 to 3; 0, as in DeepSpeed, if it names none."""
    return deepspeed_config(name).get("zero_optimization", {}).get("stage", 0)


def has_offload(name: str) -> bool:
    """Whether a DeepSpeed config keeps the optimizer's state on the CPU."""
    offload = deepspeed_config(name).get("zero_optimization", {}).get("offload_optimizer", {})
    return offload.get("device", "none") != "none"


def number_formats(model: nn.Module, precision: str, communication: str) -> dict[str, Any]:
    """DeepSpeed's keys for the precision of a step and of the sums over ranks.

    Under autocast DeepSpeed sums the gradients of the classes of modules that it calls safe in
    bf16, and at ZeRO 3 it gathers their weights so; they are its own choice, the linear layers,
    unless the config asks for others.

    Args:
        precision: "fp32" or "bf16".
        communication: `train.communication`.
    """
    autocast: dict[str, Any] = {"enabled": precision == "bf16", "dtype": "bfloat16"}
    keys: dict[str, Any] = {"torch_autocast": autocast}
    if communication == "fp32":
        autocast["lower_precision_safe_modules"] = []
    elif communication == "bf16":
        autocast["lower_precision_safe_modules"] = _matrix_classes(model)
        keys["communication_data_type"] = "bf16"
    return keys


def _matrix_classes(model: nn.Module) -> list[str]:
    """Paths of the classes of a model's modules whose weights are matrices or filters."""
    classes = {
        type(module)
        for module in model.modules()
        if any(getattr(p, "ds_shape", p.shape)[1:] for p in module.parameters(recurse=False))
    }
    return sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in classes)


def _read(name: str) -> str:
    path = Path(name)
    if path.suffix == ".json":
        if not path.is_file():
            raise ValueError(f"no DeepSpeed config at {path}")
        return path.read_text("utf-8")
    folder = resources.files("bytelm.ds_configs")
    cases = sorted(f.name.removesuffix(".json") for f in folder.iterdir() if ".json" in f.name)
    if name not in cases:
        raise ValueError(
            f"no DeepSpeed case {name!r}; choose one of {', '.join(cases)}, or a .json file"
        )
    return (folder / f"{name}.json").read_text("utf-8")
