"""Upload of an exported model to the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from bytelm.pipelines.checkpoints.model_files import (
    CARD_FILE,
    EXPORTED_FILES,
    EXPORTED_SAMPLES,
    THIS_FOLDER,
)
from bytelm.pipelines.checkpoints.pretrained import WEIGHTS_FILE, read_model_config
from bytelm.pipelines.checkpoints.run_folder import has_checkpoint
from bytelm.pipelines.errors import one_line

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

HUB_SECONDS = 300.0
"""Longest wait for an answer of the hub."""
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w.-]+", re.ASCII)
_REMEDIES = {
    401: "the hub refuses the token: log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: make one that may write, and check the user's name",
    404: "the hub knows no such user or organisation: check the name",
    409: "somebody else changes the repository at this moment: push again",
    429: "the hub asks to wait: push again in some minutes",
}


@dataclass(frozen=True)
class Pushed:
    """A model on the hub."""

    url: str
    is_private: bool
    left_out: list[str]
    """Names in the folder that an export does not write, and that were not uploaded."""


def push(folder: Path, repository: str, is_public: bool) -> Pushed:
    """Upload an exported model in one commit; the repository is made where it is missing.

    The snippet of the model card loads the model from the repository afterwards.

    Args:
        repository: the id, `user/name`.
        is_public: whether everybody may read it; otherwise a public repository is refused.
    Raises:
        ValueError: for a folder that is no exported model, an id that is none, and no token or one
            that may not write there.
        RuntimeError: if the hub does not answer or fails.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"{repository!r} is no id of a repository: give user/name")
    _check_model(folder)
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()
    disable_progress_bars()
    token = huggingface_hub.get_token()
    if token is None:
        raise ValueError(
            "there is no token of the Hugging Face hub: log in with `hf auth login`, or set "
            "HF_TOKEN"
        )
    huggingface_hub.get_session().timeout = HUB_SECONDS
    api = huggingface_hub.HfApi(token=token)
    with _hub_errors(repository):
        is_private = _make_repository(api, repository, is_public)
    if not (is_private or is_public):
        raise ValueError(
            f"{repository} is public, and nothing was uploaded: add --public, or choose another "
            "name"
        )
    with _hub_errors(repository):
        api.create_commit(
            repository,
            list(_operations(folder, repository)),
            commit_message=f"Upload {folder.resolve().name} with bytelm",
        )
    exported = {*EXPORTED_FILES, EXPORTED_SAMPLES}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in exported)
    return Pushed(f"{api.endpoint}/{repository}", is_private, left_out)


def _check_model(folder: Path) -> None:
    """Refuse what is no exported model, before anything is sent."""
    if has_checkpoint(folder):
        raise ValueError(
            f"{folder} is a run: `bytelm export {folder} --out MODEL` first, and push MODEL"
        )
    read_model_config(folder)
    try:
        with safe_open(folder / WEIGHTS_FILE, "numpy") as weights:
            weights.keys()
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} cannot be read ({error}): export the model again"
        ) from error
    if not (folder / CARD_FILE).is_file():
        raise ValueError(f"{folder} has no model card ({CARD_FILE}): export the model again")


def _make_repository(api: HfApi, repository: str, is_public: bool) -> bool:
    """Make the repository if it is missing; returns whether it is private."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repository, private=not is_public)
    except HfHubHTTPError as error:
        # It exists; or the token may not make repositories, and can still write to this one.
        if error.response.status_code not in (401, 403, 409):
            raise
        try:
            return bool(api.model_info(repository).private)
        except HfHubHTTPError:
            raise error from None
    return not is_public


def _operations(folder: Path, repository: str) -> Iterator[CommitOperationAdd]:
    """The files to upload: those that an export writes, and no other."""
    from huggingface_hub import CommitOperationAdd

    for name in EXPORTED_FILES:
        if name != CARD_FILE:
            yield CommitOperationAdd(name, folder / name)
    card = (folder / CARD_FILE).read_text("utf-8")
    card = card.replace(f"bytelm.load({THIS_FOLDER})", f'bytelm.load("{repository}")')
    yield CommitOperationAdd(CARD_FILE, card.encode())
    for path in sorted((folder / EXPORTED_SAMPLES).glob("*")):
        if path.is_file():
            yield CommitOperationAdd(f"{EXPORTED_SAMPLES}/{path.name}", path)


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turn an error of the hub's client into one that names a way out."""
    try:
        yield
    except Exception as error:  # the client's errors have no common base
        status = getattr(getattr(error, "response", None), "status_code", None)
        cause = one_line(error)
        if status in (401, 403, 404):
            raise ValueError(
                f"{repository} was not pushed: {_REMEDIES[status]} ({cause})"
            ) from error
        remedy = "check the connection (HF_ENDPOINT, proxies), and push again"
        if status is not None:
            failing = "the hub fails: push again later" if status >= 500 else "the hub refuses it"
            remedy = _REMEDIES.get(status, failing)
        raise RuntimeError(f"{repository} was not pushed: {remedy} ({cause})") from error
