"""Checkpoints that are written beside the steps, and their copies at a URL."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path
from typing import cast

import pytest
import safetensors.torch
import torch
from helpers.commands import bytelm, metrics, write_config

from bytelm.pipelines.checkpoints.remote_run import fetch_newest
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.checkpointer import NICENESS, Checkpointer
from bytelm.pipelines.training.engine import Engine
from bytelm.pipelines.training.state_copy import copied_to_memory

SIZES = {"steps": 8, "checkpoint_every": 2, "keep_last": 2, "keep_every": 4}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("step-*")}


def test_a_run_without_its_folder_goes_on_from_the_url_exactly(
    mixed_set: ShardSet, tmp_path: Path
) -> None:
    """The copies are kept by the rules of the local ones; a half upload is no checkpoint, and a
    damaged one is named and passed over. The config is at the URL, too."""
    url = f"file://{tmp_path}/store"
    config = write_config(tmp_path / "run.yaml", mixed_set, **SIZES, checkpoint_url=url)
    run, store = tmp_path / "run", tmp_path / "store" / "checkpoints"
    first = bytelm("train", config, "--out", run)
    assert "checkpoint uploaded" in first.stdout
    assert names(store) >= {"step-00000008"}
    uploads = metrics(run, "upload")
    assert not any(line["error"] for line in uploads)
    assert len(uploads) + uploads[-1]["passed_over"] == 4

    shutil.copytree(
        run / "checkpoints" / "step-00000004", store / "step-00000004", dirs_exist_ok=True
    )
    shutil.copytree(
        run / "checkpoints" / "step-00000006", store / "step-00000006", dirs_exist_ok=True
    )
    (store / "step-00000008" / "manifest.json").unlink()
    state = store / "step-00000006" / "state.json"
    state.write_bytes(state.read_bytes().replace(b'"step": 6', b'"step": 5'))
    again = tmp_path / "again"
    second = bytelm(*("train", "--out", again, "--resume", "--set", f"train.checkpoint_url={url}"))
    assert "step-00000006 of" in second.stdout
    assert "state.json does not match" in second.stdout
    assert "step-00000004 of" in second.stdout
    weights = [
        safetensors.torch.load_file(
            folder / "checkpoints" / "step-00000008" / "model" / "model.safetensors"
        )
        for folder in (run, again)
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert fetch_newest(url, again) == [], "the local one is as new"
    refused = bytelm("train", config, "--out", tmp_path / "new", status=2)
    assert "has checkpoints, up to step 8: continue with --resume" in refused.stderr


def test_a_failing_store_does_not_stop_the_run(mixed_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder would be")
    url = f"file://{tmp_path}/store"
    config = write_config(tmp_path / "run.yaml", mixed_set, **SIZES, checkpoint_url=url)
    result = bytelm("train", config, "--out", tmp_path / "run")
    assert "could not be uploaded" in result.stdout
    assert names(tmp_path / "run" / "checkpoints") >= {"step-00000006", "step-00000008"}


def test_a_copy_shares_bytes_as_the_original_and_stays_when_it_changes() -> None:
    whole = torch.arange(6.0)
    state = {"part": whole[2:4], "nested": [whole, (whole.view(2, 3),)], "step": 3}
    copied = copied_to_memory(state)
    whole.zero_()
    assert copied["part"].tolist() == [2.0, 3.0]
    assert copied["nested"][1][0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert copied["part"].untyped_storage().data_ptr() == copied["nested"][0].data_ptr()
    assert copied["step"] == 3


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_the_thread_that_writes_lets_steps_go_first(tmp_path: Path) -> None:
    checkpointer = Checkpointer(cast(Engine, None), tmp_path, {}, math.inf)
    try:
        written = checkpointer._thread.submit(os.getpriority, os.PRIO_PROCESS, 0).result()
    finally:
        checkpointer.close()
    assert written == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
