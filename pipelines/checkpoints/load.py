"""Find and load the model that a user names by a path."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import CONFIG_FILE, from_pretrained
from bytelm.pipelines.checkpoints.run_folder import (
    MODEL_FOLDER,
    has_checkpoint,
    model_damage,
    newest_usable,
    saved_config,
)
from bytelm.pipelines.data.dataset_info import DatasetInfo


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
