"""From a path that a user gives to a model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.manifest import file_entry
from bytelm.pipelines.checkpoints.pretrained import CONFIG_FILE, from_pretrained
from bytelm.pipelines.checkpoints.run_folder import FOLDER, MODEL, has_any, model_damage, newest
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.storage.files import fsync_folder


def model_folder(path: Path) -> str:
    """The folder of the exported model that a user means: a run's newest, or the path itself.

    A path that does not exist here is given back as it is, for the Hugging Face hub. Checkpoints
    whose model is damaged are named on stderr and passed over.
    """
    if (path / CONFIG_FILE).is_file() and not (path / FOLDER).is_dir():
        return str(path)
    if has_any(path):
        found = newest(path, model_damage)
        for line in found.refused:
            print(f"refused {line}", file=sys.stderr)
        return str(found.folder / MODEL)
    if path.is_dir():
        raise ValueError(
            f"{path} is neither a run with a checkpoint nor an exported model: "
            "train it further, or name another folder"
        )
    return str(path)


def load_model(path: Path) -> tuple[Megabyte, DatasetInfo]:
    """The model that a user means by a path, on the GPU where there is one, and what it has seen.

    Raises ValueError for what is missing, damaged, or of another format version.
    """
    model, extra = from_pretrained(model_folder(path))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), DatasetInfo.from_extra(extra)


def export(run: Path, out: Path) -> None:
    """Copy a run's newest exported model to a folder of its own."""
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out, or remove it")
    source = model_folder(run)
    if not Path(source).is_dir():
        raise ValueError(f"no run at {run}")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    for file in temporary.iterdir():
        file_entry(file)
    fsync_folder(temporary)
    temporary.rename(out)
