"""Containers and restored files are the same bytes from any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import TINY_MODEL, bytelm, torchrun

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.compression.container import unpack

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
MIXING = {"codec_features": True, "output_mixing": True}


def model_folder(tmp_path: Path, **options: bool) -> Path:
    torch.manual_seed(4)
    model = Megabyte(ModelConfig.from_dict({**TINY_MODEL, "init_std": 0.2, **options}))
    save_pretrained(model, model.config, tmp_path / "model", {"views": VIEWS})
    return tmp_path / "model"


def texts(tmp_path: Path, streams: int) -> Path:
    """A folder of texts of some lengths, in folders and not, that fill some streams."""
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    for number, size in enumerate((34_000 * (streams - 1), 11, 300, 2_000)):
        (folder / f"{number}.txt").write_text((f"the white whale {number} " * size)[:size])
    (folder / "deep" / "a.txt").write_text("call me ishmael")
    return folder


@pytest.mark.parametrize(
    ("processes", "options", "flags"),
    [
        (2, {}, ()),
        pytest.param(3, {}, (), marks=pytest.mark.long),
        pytest.param(2, MIXING, ("--batch", 1), marks=pytest.mark.long),
        pytest.param(2, MIXING, ("--adapt",), marks=pytest.mark.long),
    ],
)
def test_processes_write_the_container_and_the_files_of_one(
    tmp_path: Path, processes: int, options: dict[str, bool], flags: tuple[str | int, ...]
) -> None:
    model, folder = model_folder(tmp_path, **options), texts(tmp_path, processes)
    one, many = tmp_path / "one.blm", tmp_path / "many.blm"
    arguments = ("compress", model, folder, "--batch", 8, *flags)
    bytelm(*arguments, "--out", one)
    bytelm(*arguments, "--out", many, "--processes", processes)
    assert one.read_bytes() == many.read_bytes()
    assert len(unpack(one.read_bytes(), "one").streams) == processes
    back = tmp_path / "back"
    bytelm("decompress", model, many, "--out", back, "--processes", processes)
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(back) for path in back.rglob("*") if path.is_file()} == names
    for name in names:
        assert (back / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.long
def test_ranks_of_torchrun_write_the_container_and_the_files_of_one(tmp_path: Path) -> None:
    model, folder = model_folder(tmp_path), texts(tmp_path, streams=2)
    one, many, back = tmp_path / "one.blm", tmp_path / "many.blm", tmp_path / "back"
    options = ("compress", model, folder, "--batch", 8)
    bytelm(*options, "--out", one)
    torchrun(2, *options, "--out", many)
    assert one.read_bytes() == many.read_bytes()
    torchrun(2, "decompress", model, many, "--out", back)
    for path in folder.rglob("*.txt"):
        assert (back / path.relative_to(folder)).read_bytes() == path.read_bytes()
