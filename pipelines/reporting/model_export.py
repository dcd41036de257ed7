"""Export of a run's newest model: weights, config, model card and samples in a folder."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from bytelm.model.stored_names import config_from_stored
from bytelm.pipelines.checkpoints.bundled_models import bundled_model
from bytelm.pipelines.checkpoints.load import model_folder
from bytelm.pipelines.checkpoints.manifest import file_entry
from bytelm.pipelines.checkpoints.model_files import CARD_FILE, EXPORTED_SAMPLES
from bytelm.pipelines.checkpoints.pretrained import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_model_config,
    write_weights,
)
from bytelm.pipelines.checkpoints.run_folder import checkpoint_step
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.reporting.drawn_samples import newest_samples
from bytelm.pipelines.reporting.model_card import CardFacts, model_card
from bytelm.pipelines.reporting.run_data import read_run
from bytelm.pipelines.reporting.run_evaluation import kept_evaluations
from bytelm.pipelines.storage.files import fsync_folder, rename_durably
from bytelm.pipelines.training.samples import SAMPLES_FILE

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Numbers in which weights are stored. A loaded model has them in fp32."""
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def export_model(
    run: Path,
    out: Path,
    license_id: str | None,
    output_mixing: bool | None = None,
    dtype: str = "fp32",
) -> list[str]:
    """Write a run's newest model to a new folder, which appears only once it is whole.

    Args:
        license_id: licence of the model, by the hub's id (`mit`, `cc-by-4.0`); None if unknown.
        output_mixing: switch `ModelConfig.output_mixing` on or off, which training does without;
            None leaves it. After a change the card lacks the run's scores.
        dtype: one of `DTYPES`, in which the weights are stored. At bf16 the card lacks scores and
            samples too, which are those of the weights that were rounded.
    Returns:
        a line for each thing that the model card lacks.
    Raises:
        ValueError: if there is no run, `out` exists, the licence is no id, or the model cannot mix.
    """
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out, or remove it")
    if license_id is not None and not _LICENSE.fullmatch(license_id.lower()):
        raise ValueError(f"{license_id!r} is no id of a licence: give one such as mit or cc-by-4.0")
    source = Path(model_folder(run))
    bundled = None if source.is_dir() else bundled_model(str(run))
    if bundled:
        raise ValueError(f"{run} is an exported model already: copy {bundled}, or export a run")
    if not source.is_dir():
        raise ValueError(f"no run at {run}: give the folder that `bytelm train --out` wrote")
    step = checkpoint_step(source)
    if step is None:
        raise ValueError(f"{run} is an exported model already: copy its folder, or export its run")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            shutil.copy(source / name, temporary / name)
        is_changed = output_mixing is not None and _switch_mixing(temporary, output_mixing)
        if dtype != "fp32":
            _round_weights(temporary / WEIGHTS_FILE, DTYPES[dtype])
        has_results = dtype == "fp32" and not is_changed
        license_id = license_id and license_id.lower()
        missing = _write_card(run, step, temporary, out.name, license_id, has_results)
        _make_durable(temporary)
        rename_durably(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return missing


def _switch_mixing(folder: Path, is_mixing: bool) -> bool:
    """Switch mixing on or off in a model's config; returns whether that is a change."""
    document = read_model_config(folder)
    if config_from_stored(document["model"]).output_mixing == is_mixing:
        return False
    document["model"]["output_mixing"] = is_mixing
    config_from_stored(document["model"])  # refuses a model that cannot mix
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    return True


def _round_weights(path: Path, dtype: torch.dtype) -> None:
    weights = safetensors.torch.load_file(path)
    rounded = {name: tensor.to(dtype) for name, tensor in weights.items()}
    write_weights(rounded, path)


def _write_card(
    run: Path, step: int, folder: Path, name: str, license_id: str | None, has_results: bool
) -> list[str]:
    """Write the card and copy the samples; returns a line for each thing that is missing.

    Args:
        has_results: the run's scores and samples are those of this model.
    """
    document = read_model_config(folder)
    data = read_run(run)
    evaluation = samples = None
    if has_results:
        evaluation = next((e for e in kept_evaluations(data) if e["about"]["step"] == step), None)
        samples = _copy_samples(run, step, folder / EXPORTED_SAMPLES)
    facts = CardFacts(
        name=name,
        config=config_from_stored(document["model"]),
        info=DatasetInfo.from_extra(document),
        step=step,
        license=license_id,
        sets=data.sets,
        evaluation=evaluation,
        samples=samples,
    )
    (folder / CARD_FILE).write_text(model_card(facts), encoding="utf-8")
    missing = []
    if not has_results:
        missing.append(
            "scores and samples of the run are those of its weights in fp32, with its own mixing"
        )
    elif evaluation is None:
        missing.append(
            f"step {step:,} is not evaluated: `bytelm evaluate {run} --data SET` or `bytelm report "
            f"{run}` first gives the card its table"
        )
    if has_results and samples is None:
        missing.append(f"the run has no samples of step {step:,}: set train.sample_every")
    if license_id is None:
        missing.append("no licence is named: --license ID")
    return missing


def _copy_samples(run: Path, step: int, target: Path) -> Path | None:
    """Copy the newest samples that these weights, or earlier ones, drew.

    Real files of the data, which stand beside the samples in a run, are left out.
    """
    newest = newest_samples(run, step)
    if newest is None:
        return None
    _, source = newest
    try:
        records = json.loads((source / SAMPLES_FILE).read_text("utf-8"))
        kept = [_without_files(record) for record in records]
        target.mkdir()
        for record in kept:
            shutil.copy(source / record["file"], target / record["file"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"the samples in {source} cannot be read ({error}): left out", file=sys.stderr)
        shutil.rmtree(target, ignore_errors=True)
        return None
    text = json.dumps(kept, indent=1, ensure_ascii=False)
    (target / SAMPLES_FILE).write_text(text + "\n", encoding="utf-8")
    return target if kept else None


def _without_files(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a sample without the names of real files: prompts of texts, and captions of
    others, are texts and stay."""
    is_text = record["modality"] == "text"
    left_out = "condition_on" if is_text else "prompt"
    return {"given_share": 0, **record, "file": Path(record["file"]).name, left_out: None}


def _make_durable(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            file_entry(path)
        else:
            fsync_folder(path)
    fsync_folder(folder)
