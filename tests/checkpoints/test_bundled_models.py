"""Models that come with the package: by name, unless a folder of that name holds one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import status
from helpers.served import write_model

import bytelm
from bytelm.pipelines.checkpoints import bundled_models
from bytelm.pipelines.checkpoints.load import load_model, opened_model, settled_location
from bytelm.pipelines.runtime.ranks import Ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundled model `tiny`, and an empty current directory."""
    folder = write_model(tmp_path / "models" / "tiny")
    monkeypatch.setattr(bundled_models, "BUNDLED_MODELS", tmp_path / "models")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def found(name: str) -> str:
    with opened_model(name) as folder:
        return folder


def test_a_bundled_model_is_found_by_its_name(
    bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundled_models.bundled_names() == ["tiny"]
    assert found("tiny") == str(bundled)
    monkeypatch.setattr(Ranks, "gather", lambda ranks, part: [part])
    monkeypatch.setattr(Ranks, "together", lambda ranks, work: work())
    assert settled_location("tiny", Ranks(0, 2)) == str(bundled)
    weights = bytelm.load("tiny").model.state_dict()
    for name, expected in load_model(bundled)[0].state_dict().items():
        assert torch.equal(weights[name], expected)


def test_commands_find_it(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_bytes(b"call me Ishmael")
    commands = [
        ["generate", "tiny", "--modality", "image", "--size", "4x4", "--out", "out"],
        ["compress", "tiny", "a.txt", "--out", "a.blm"],
        ["decompress", "tiny", "a.blm", "--out", "back"],
        ["prepare", "a.txt", "--out", "set", "--workers", "1"],
        ["evaluate", "tiny", "--data", "set", "--split", "train"],
    ]
    for command in commands:
        assert status(command) == 0, capsys.readouterr()
    assert Path("out/image-000.png").is_file()
    assert Path("back/a.txt").read_bytes() == b"call me Ishmael"
    assert not Path("tiny").exists()


def test_a_folder_of_that_name_comes_first_if_it_holds_a_model(bundled: Path) -> None:
    Path("tiny").mkdir()
    assert found("tiny") == str(bundled)
    write_model(Path("tiny"))
    assert found("tiny") == "tiny"


def test_a_path_is_not_a_name(bundled: Path) -> None:
    for path in ("./tiny", "tiny/", "../models", "*"):
        with pytest.raises(ValueError, match=r"no model at|neither a run"):
            load_model(path)


def test_an_unknown_name_is_refused(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["compress", "tinny", "a.txt", "--out", "a.blm"]) == 2
    assert "the name of a bundled one" in capsys.readouterr().err


def test_small_comes_with_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundled_models.BUNDLED_MODELS.resolve() == ROOT / "examples" / "models"
    assert "small" in bundled_models.bundled_names()
    files = list((ROOT / "examples" / "models" / "small").iterdir())
    assert {"README.md", "NOTICE.md", "train.yaml"} < {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 16_000_000
    model = bytelm.load("small")
    assert set(model.views) == {"text", "image", "audio"}
    assert model.config.output_mixing
    assert model.generate("image", size=(4, 4))[0].size == (4, 4)
    licence = (ROOT / "LICENSE").read_bytes()
    packed = model.compress(licence)
    assert len(packed) < len(licence)
    assert model.decompress(packed) == licence
