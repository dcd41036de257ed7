"""Read and check the DeepSpeed JSON that a run names: a case of `ds_configs`, or a file."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

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
