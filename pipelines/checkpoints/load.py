"""Find and load the model that a user names by a path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.bundled_models import bundled_model
from bytelm.pipelines.checkpoints.pretrained import CONFIG_FILE, from_pretrained
from bytelm.pipelines.checkpoints.remote_model import fetched_model, newest_checkpoint
from bytelm.pipelines.checkpoints.run_folder import (
    MODEL_FOLDER,
    has_checkpoint,
    model_damage,
    newest_usable,
    saved_config,
)
from bytelm.pipelines.checkpoints.untrained import is_untrained, saved_untrained
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.runtime.ranks import Ranks
from bytelm.pipelines.storage.remote import folder_of, is_remote


def load_model(location: str | Path) -> tuple[Megabyte, DatasetInfo]:
    """Load a model in evaluation mode, onto the GPU if there is one, and what it was trained on.

    Args:
        location: a run's folder, an exported model, the name of a bundled model, the URL of a run
            or of a checkpoint, the id of a repository of the Hugging Face hub, or a preset and seed
            of random weights (`untrained`).
    Raises:
        ValueError: if it is missing, damaged or of another format version.
        OSError: if an object store fails.
    """
    with opened_model(location) as folder:
        model, extra = from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), DatasetInfo.from_extra(extra)


def settled_location(location: str | Path, ranks: Ranks) -> str | Path:
    """Choose the checkpoint that all ranks load, since a run may save another one meanwhile.

    Every rank has to call it. One rank alone chooses when it loads; of several, rank 0 chooses.

    Returns:
        The location itself, or that of one checkpoint of the run.
    Raises:
        What `load_model` raises, as `Ranks.together` does.
    """
    if ranks.count == 1:
        return location

    def choose() -> str:
        if ranks.rank:
            return ""
        url = str(location)
        if is_untrained(location):
            return url
        return newest_checkpoint(url) if is_url(location) else _local_model(url)

    return ranks.gather(ranks.together(choose))[0]


@contextmanager
def opened_model(location: str | Path) -> Iterator[str]:
    """Find the folder of the model that a user names, as `load_model` does.

    The model of a URL is fetched and checked, and its files stay until the end of the body.
    """
    if is_untrained(location):
        with saved_untrained(str(location)) as saved:
            yield saved
    elif is_url(location):
        with fetched_model(str(location)) as folder:
            yield str(folder)
    else:
        yield _local_model(str(location))


def _local_model(location: str) -> str:
    """The folder of a bundled model, or what `model_folder` returns.

    A folder of the same name comes first if it holds a run or a model.
    """
    path = folder_of(location)
    is_taken = (path / CONFIG_FILE).is_file() or has_checkpoint(path)
    bundled = None if is_taken else bundled_model(location)
    return str(bundled) if bundled else model_folder(path)


def is_url(location: str | Path) -> bool:
    """Return whether a model's location is a URL from which it is fetched.

    Raises ValueError for a URL whose scheme is not allowed.
    """
    return isinstance(location, str) and is_remote(location)


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
