"""Exported models: `model.safetensors` and `config.json` in a folder or on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from bytelm.model.config import ModelConfig
from bytelm.model.initialisation import model_without_weights
from bytelm.model.megabyte import Megabyte
from bytelm.model.stored_names import config_from_stored, stored_config, stored_parameter
from bytelm.pipelines.storage.files import replace_atomic, write_atomic

MODEL_FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_OUTPUT_WEIGHT = "lm_head.weight"


def save_pretrained(
    model_or_state_dict: Megabyte | Mapping[str, Tensor],
    config: ModelConfig,
    folder: str | os.PathLike[str],
    extra: Mapping[str, Any],
) -> None:
    """Write weights and config to a folder, which is created if it is missing.

    Each file is written atomically, the config last, so a folder with a config.json has whole
    weights. A tied output is stored once.

    Args:
        extra: further keys of config.json, as plain JSON.
    Raises:
        ValueError: if `extra` contains "format" or "model", which the file itself uses.
    """
    taken = {"format", "model"} & set(extra)
    if taken:
        raise ValueError(f"extra holds {sorted(taken)}, which the format itself uses: rename them")
    state = model_or_state_dict
    if isinstance(state, Megabyte):
        state = state.state_dict()
    tensors = {
        stored_parameter(name): tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if not (config.tie_embeddings and name == _OUTPUT_WEIGHT)
    }
    document = {"format": MODEL_FORMAT, "model": stored_config(config), **extra}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_atomic(folder / WEIGHTS_FILE, lambda path: write_weights(tensors, path))
    write_atomic(folder / CONFIG_FILE, text.encode())


def write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the access that other new files have; the library's is 0600."""
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(tensors, path)
    path.chmod(mode)


def from_pretrained(source: str | os.PathLike[str]) -> tuple[Megabyte, dict[str, Any]]:
    """Load a model from a local folder or a Hugging Face repository.

    Returns:
        The model in evaluation mode and in fp32, whatever its weights are stored in, and the
        further keys of its config.json.
    Raises:
        ValueError: if the source is missing, damaged, or of another format version.
    """
    folder = _folder_of(source)
    document = read_model_config(folder)
    try:
        config = config_from_stored(document["model"])
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
    model = model_without_weights(config)
    try:
        stored = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} cannot be read ({error}): export the model again"
        ) from error
    state = {name: tensor.float() for name, tensor in stored.items()}
    byte_embedding = f"stages.{len(config.stages) - 1}.byte_embed.weight"
    if config.tie_embeddings and byte_embedding in state:
        state[_OUTPUT_WEIGHT] = state[byte_embedding]
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} does not hold the weights that {CONFIG_FILE} describes: "
            "export the model again"
        ) from error
    model.tie_output()
    extra = {key: value for key, value in document.items() if key not in ("format", "model")}
    return model.eval(), extra


def save_sampling(folder: Path, sampling: Mapping[str, Any]) -> None:
    """Write settings of sampling into the config.json of an exported model; see `DatasetInfo`.

    Args:
        sampling: settings by modality; those of other modalities stay.
    Raises:
        ValueError: the folder holds no model.
    """
    document = read_model_config(folder)
    document["sampling"] = {**document.get("sampling", {}), **sampling}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(folder / CONFIG_FILE, text.encode())


def _folder_of(source: str | os.PathLike[str]) -> Path:
    """The local folder, or the downloaded snapshot of a repository."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{source} is a file: give the folder that holds {CONFIG_FILE}")
    if not re.fullmatch(r"[\w][\w.-]*/[\w.-]+", str(source)):
        raise ValueError(
            f"no model at {source}: give the folder of a run or of an exported model, the name of "
            "a bundled one, or a repository's id"
        )
    import huggingface_hub  # takes half a second, which a local folder does not need

    try:
        snapshot = huggingface_hub.snapshot_download(
            str(source), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]
        )
    except Exception as error:  # the client's errors have no common base
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"no folder {source} here, and the Hugging Face hub does not provide it ({cause}): "
            "check the name and the connection"
        ) from error
    return Path(snapshot)


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of an exported model; ValueError where it holds none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no model (no {CONFIG_FILE}): give an exported folder")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): export the model again") from error
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ValueError(f"{path} describes no bytelm model: give an exported folder")
    if document.get("format") != MODEL_FORMAT:
        raise ValueError(
            f"{path} has format {document.get('format')!r}, this version reads {MODEL_FORMAT}: "
            "use the version of bytelm that wrote it, or export the model again"
        )
    return document
