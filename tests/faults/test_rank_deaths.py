"""A rank of `compress` that dies is named, and no container is left; torchrun gives equal bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.commands import TINY_MODEL, bytelm, command, environment
from helpers.processes import children, wait_until_gone

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained

pytestmark = pytest.mark.long


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    torch.manual_seed(4)
    model = Megabyte(ModelConfig.from_dict({**TINY_MODEL, "init_std": 0.2}))
    views = {"text": "utf8", "image": "raster", "audio": "s16be"}
    save_pretrained(model, model.config, tmp_path / "model", {"views": views})
    (tmp_path / "long.txt").write_text("call me ishmael " * 20_000)
    return tmp_path / "model"


def test_a_rank_that_is_killed_is_named_and_no_container_is_left(
    model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "f.blm"
    process = subprocess.Popen(
        command(*("compress", model_folder, tmp_path / "long.txt", "--out", out, "--processes", 2)),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    while len(ranks := children(process.pid)) < 2:
        time.sleep(0.01)
    time.sleep(4)
    os.kill(max(ranks), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was ended by SIGKILL" in error
    wait_until_gone(ranks, 10)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_torchrun_makes_the_files_of_one_process(model_folder: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start = [*torchrun, "--nproc-per-node", "2", "-m", "bytelm"]
    kind = ("--modality", "text", "--max-bytes", "40", "--count", "5")
    bytelm("generate", model_folder, *kind, "--out", tmp_path / "one")
    line = [*start, "generate", str(model_folder), *kind, "--out", str(tmp_path / "two")]
    subprocess.run(line, check=True, env=environment(), capture_output=True)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 5
