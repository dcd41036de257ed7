"""Files are the same bytes from any number of processes, and those of a call that ended stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import TINY_MODEL, bytelm, torchrun
from torch import Tensor

from bytelm.model.config import ModelConfig
from bytelm.model.decoding.row_sampler import RowSampler
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.generation.generate import generate_files, generate_payloads
from bytelm.pipelines.generation.request import text_request

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


def tiny() -> Megabyte:
    torch.manual_seed(4)
    return Megabyte(ModelConfig.from_dict({**TINY_MODEL, "init_std": 0.2})).eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.long)])
def test_processes_write_the_files_of_one(tmp_path: Path, processes: int) -> None:
    model = tiny()
    save_pretrained(model, model.config, tmp_path / "model", {"views": VIEWS})
    kind = ("--modality", "image", "--size", "5x4")
    options = ("generate", tmp_path / "model", *kind, "--count", 5, "--sheet")
    one = bytelm(*options, "--out", tmp_path / "one").stdout
    many = bytelm(*options, "--out", tmp_path / "many", "--processes", processes).stdout
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert len(contents(tmp_path / "many")) == 6
    assert many.replace("many", "one") == one


@pytest.mark.long
def test_ranks_of_torchrun_write_the_files_of_one(tmp_path: Path) -> None:
    model = tiny()
    save_pretrained(model, model.config, tmp_path / "model", {"views": VIEWS})
    prompt = ("--modality", "text", "--prompt", "call me ishmael " * 5, "--max-bytes", 120)
    options = ("generate", tmp_path / "model", *prompt, "--count", 5)
    bytelm(*options, "--out", tmp_path / "one")
    torchrun(2, *options, "--out", tmp_path / "many")
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_files_of_a_call_that_ended_are_kept(tmp_path: Path) -> None:
    """The third of four files is missing; one that is kept is not drawn again."""
    model, requests = tiny(), [text_request("", size, "utf8") for size in (9, 9, 12, 20)]
    settings = (model, requests, range(4), Sampling(), "fp32")
    whole = generate_files(*settings, tmp_path / "whole", identity="a")
    expected = {path.name: path.read_bytes() for path in whole}
    assert contents(tmp_path / "whole") == expected  # no mark is left

    out = tmp_path / "out"
    generate_files(*settings, out, identity="a")
    marks = out / ".generate-a"
    marks.mkdir()
    for number in (0, 1, 3):
        (marks / str(number)).write_text(whole[number].name)
    (out / whole[0].name).write_bytes(b"kept as it is")
    (out / whole[2].name).unlink()
    generate_files(*settings, out, identity="a")
    assert contents(out) == {**expected, whole[0].name: b"kept as it is"}
    marks.mkdir()
    (marks / "0").write_text(whole[0].name)
    generate_files(*settings, out, identity="b")  # another model: the mark means nothing
    assert contents(out) == expected


def test_the_bits_behind_a_prompt_do_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products of these sizes are grouped otherwise by two threads than by one, in MKL at least."""
    torch.manual_seed(4)
    stages = [{"width": width, "layers": 1, "heads": 2} for width in (128, 64)]
    model = Megabyte(ModelConfig.from_dict({**TINY_MODEL, "stages": stages})).eval()
    requests = [text_request("a" * size, size + 2, "utf8") for size in range(10, 100, 10)]
    draw, seen = RowSampler.draw, []

    def drawn(sampler: RowSampler, logits: Tensor) -> Tensor:
        seen.append(logits.clone())
        return draw(sampler, logits)

    monkeypatch.setattr(RowSampler, "draw", drawn)
    usual, runs = torch.get_num_threads(), []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        for request in requests:
            generate_payloads(model, request, [0], Sampling(), "fp32")
        runs.append(torch.cat(seen))
        seen.clear()
    torch.set_num_threads(usual)
    assert all(torch.equal(run, runs[0]) for run in runs)
