"""Folders of runs made up for reports: config, metrics and evaluations, without training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bytelm.pipelines.checkpoints.manifest import file_entry, write_checkpoint_manifest
from bytelm.pipelines.checkpoints.run_folder import checkpoint_name
from bytelm.pipelines.checkpoints.train_state import TrainState, write_state
from bytelm.pipelines.config import config_from_dict
from bytelm.pipelines.evaluation.records import Evaluation, keep_evaluation
from helpers.commands import TINY_MODEL


def write_run(folder: Path, steps: int = 40, sets: Sequence[str] = ("gone",), **train: Any) -> Path:
    """Write a run's config and metrics; the loss falls as a power of the step, with noise."""
    folder.mkdir(parents=True)
    values = {
        "model": TINY_MODEL,
        "data": {"sets": [{"path": path} for path in sets]},
        "train": {"steps": steps, **train},
    }
    (folder / "config.json").write_text(json.dumps(config_from_dict(values).to_dict()))
    rng = np.random.default_rng(0)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps(_train_record(step, rng)) + "\n")
            if step % 10 == 0:
                bits = {"bits_per_byte": 2 + 6 / step, "payload_bytes": 1000}
                record = {"kind": "eval", "step": step, "text": bits, "total": bits}
                file.write(json.dumps(record) + "\n")
    return folder


def add_checkpoint(run: Path, model: Path, step: int) -> Path:
    """Add a checkpoint of an exported model to a run's folder, and name it in `latest`."""
    name = checkpoint_name(step)
    checkpoint = run / "checkpoints" / name
    shutil.copytree(model, checkpoint / "model")
    state = TrainState(step=step, epoch=0, row=0, plan={}, ranks=1, zero_stage=0)
    write_state(checkpoint, state)
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    entries = {path.relative_to(checkpoint).as_posix(): file_entry(path) for path in files}
    write_checkpoint_manifest(checkpoint, name, entries)
    (run / "checkpoints" / "latest").write_text(name)
    return checkpoint


def add_records(folder: Path, *records: Mapping[str, Any]) -> None:
    """Append records to a run's metrics."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def documents(
    bits: Sequence[float], prefix: str = "doc", set_path: str = "gone"
) -> list[dict[str, Any]]:
    """Entries of scored texts of 100 bytes."""
    return [
        {
            "key": f"{prefix}-{number}",
            "set": set_path,
            "modality": "text",
            "bytes": 100,
            "bits": value,
            "coded_bits": value + 8,
        }
        for number, value in enumerate(bits)
    ]


def add_evaluation(
    folder: Path, scored: list[dict[str, Any]], step: int = 40, **parts: Any
) -> Path:
    """Write an evaluation of texts into a run's folder."""
    size = sum(d["bytes"] for d in scored)
    figures = {
        "bits_per_byte": sum(d["bits"] for d in scored) / size,
        "coded_bits_per_byte": sum(d["coded_bits"] for d in scored) / size,
        "payload_bytes": size,
        "bits_per_character": 2.25,
    }
    about = {
        "model": str(folder),
        "step": step,
        "parameters": 1000,
        "split": "val",
        "scoring": "plain",
        "precision": "fp32",
        "limit": None,
        "sets": [{"path": "gone", "root": "a" * 64}],
    }
    values: dict[str, Any] = {
        "about": about,
        "model": {"text": figures, "total": figures},
        "intervals": {"text": {"bits_per_byte": [1.5, 2.5]}},
        "maps": {"text": [_map("by script", ["Latin", "digits"], [2], [150.0, 50.0], [90, 10])]},
        "codecs": {"text": {"gzip": 3.5, "xz": 3.25}},
        "codec_chunks": {"text": {"gzip": 4.5}},
        "codecs_missing": {},
        "with_weights": {"text": {"bits_per_byte": 99.0, "weight_bytes": 2000}},
        "pairs": {},
        "documents": scored,
    }
    return keep_evaluation(folder, Evaluation(**{**values, **parts}))


def _map(
    title: str, labels: list[str], shape: list[int], bits: list[float], sizes: list[int]
) -> dict[str, Any]:
    return {
        "name": title,
        "title": title,
        "axis": title,
        "labels": labels,
        "shape": shape,
        "bits": bits,
        "bytes": sizes,
    }


def _train_record(step: int, rng: np.random.Generator) -> dict[str, Any]:
    loss = 1.5 + 4 * step**-0.5 + 0.1 * float(rng.normal())
    return {
        "kind": "train",
        "step": step,
        "loss": loss,
        "bits_per_byte": {"text": 1.4 * loss},
        "lr": 0.02 * step,
        "grad_norm": 1.0,
        "skipped_steps": 0,
        "pad_ids": 6,
        "bytes_per_second": 1000.0,
        "data_wait": 0.01,
        "mfu": 0.3,
        "epoch": 0,
        "row": step,
    }
