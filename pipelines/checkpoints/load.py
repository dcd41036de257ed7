"""Find and load the model that a user names by a path, and export a run's newest one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.manifest import file_entry
from bytelm.pipelines.checkpoints.pretrained import CONFIG_FILE, from_pretrained
from bytelm.pipelines.checkpoints.run_folder import (
    MODEL_FOLDER,
    has_checkpoint,
    model_damage,
    newest_usable,
    saved_config,
)
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.storage.files import fsync_folder, rename_durably


def load_model(path: Path) -> tuple[Megabyte, DatasetInfo]:
    """Load a model in evaluation mode, onto the GPU if there is one, and what it was trained on.

    Args:
        path: a run's folder, an exported model, or a repository of the Hugging Face hub.
    Raises:
        ValueError: if it is missing, damaged or of another format version.
    """
    model, extra = from_pretrained(model_folder(path))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), DatasetInfo.from_extra(extra)


def export(run: Path, out: Path) -> None:
    """Copy a run's newest exported model to a new folder, which appears only once it is whole."""
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out, or remove it")
    source = model_folder(run)
    if not Path(source).is_dir():
        raise ValueError(f"no run at {run}: give the folder that `bytelm train --out` wrote")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(source, temporary)
        for file in temporary.iterdir():
            file_entry(file)  # makes it durable
        fsync_folder(temporary)
        rename_durably(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def model_folder(path: Path) -> str:
    """Return the exported model's folder: the path itself, or the newest one of a run.

    A path that does not exist is returned unchanged, as the id of a repository on the Hugging Face
    hub. Checkpoints whose model is damaged are passed over and named on stderr.
    """
    if has_checkpoint(path):
        checkpoint = newest_usable(path, model_damage)
        for message in checkpoint.refused:
            print(f"refused {message}", file=sys.stderr)
        return str(checkpoint.folder / MODEL_FOLDER)
    if config := saved_config(path):
        train = config["train"]
        first = min(train["checkpoint_every"], train["steps"])
        raise ValueError(
            f"{path} is neither a run with a checkpoint nor an exported model (it has made no "
            f"checkpoint yet; the first comes at step {first}): train it further"
        )
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        raise ValueError(
            f"{path} is neither a run with a checkpoint nor an exported model: "
            "train it further, or name another folder"
        )
    return str(path)
