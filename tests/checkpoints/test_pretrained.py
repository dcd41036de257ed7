"""Models as files: what goes out comes back, and damage is named."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from helpers.tiny_models import OPTIONS, SHAPES, options_of, tiny_config, tiny_model

from bytelm.model.stored_names import stored_config
from bytelm.pipelines.checkpoints.pretrained import from_pretrained, save_pretrained


def _saved(folder: Path, **options: Any) -> Path:
    model = tiny_model("two", **options)
    save_pretrained(model, model.config, folder, {"views": ["utf8"]})
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_comes_back(tmp_path: Path, shape: str, tied: bool) -> None:
    model = tiny_model(shape, tie_embeddings=tied, dropout=0.1).eval()
    save_pretrained(model, model.config, tmp_path / "a" / "b", {"views": ["utf8"], "step": 3})
    loaded, extra = from_pretrained(tmp_path / "a" / "b")
    assert extra == {"views": ["utf8"], "step": 3}
    assert loaded.config == model.config
    assert not loaded.training
    assert (loaded.lm_head.weight is loaded.stages[-1].byte_embed.weight) == tied
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    ids = torch.randint(0, 256, (1, 48))
    with torch.no_grad():
        assert torch.equal(loaded.logits(ids), model.logits(ids))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_model_with_options_comes_back(tmp_path: Path, option: str) -> None:
    model = tiny_model("two", **options_of(option, "two")).eval()
    save_pretrained(model, model.config, tmp_path, {})
    loaded, _ = from_pretrained(tmp_path)
    ids = torch.randint(0, 256, (1, 48))
    modality = torch.ones_like(ids, dtype=torch.uint8)
    with torch.no_grad():
        expected = model.logits(ids, modality=modality)
        found = loaded.logits(ids, modality=modality)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_state_dict_is_as_good_as_a_model(tmp_path: Path) -> None:
    model = tiny_model("two")
    save_pretrained(model.state_dict(), model.config, tmp_path, {})
    loaded, _ = from_pretrained(str(tmp_path))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_folder_holds_two_files_and_a_tied_output_once(tmp_path: Path) -> None:
    _saved(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    document = json.loads((tmp_path / "config.json").read_text())
    assert document == {"format": 1, "model": stored_config(tiny_config("two")), "views": ["utf8"]}
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors


def test_a_failed_save_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(tensors: object, path: Path) -> None:
        path.write_bytes(b"half a fi")
        raise OSError("the disk is full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk is full"):
        _saved(tmp_path, tie_embeddings=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_extra_does_not_hide_the_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'format'"):
        save_pretrained(tiny_model("two"), tiny_config("two"), tmp_path, {"format": 2})


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damage_is_named(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    good = {weights: weights.read_bytes(), config: config.read_bytes()}

    def check(message: str) -> None:
        with pytest.raises(ValueError, match=message) as raised:
            from_pretrained(folder)
        assert "\n" not in str(raised.value)
        for path, content in good.items():
            path.write_bytes(content)

    _edit(folder, format=2)
    check("format 2, this version reads 1")
    _edit(folder, model=tiny_config("two").to_dict() | {"contxt": 5})
    check("'contxt' .* 'context'")
    _edit(folder, model=tiny_config("three").to_dict())
    check("does not hold the weights")
    _edit(folder, model=tiny_config("two", tie_embeddings=False).to_dict())
    check("does not hold the weights")
    _edit(folder, model=None)
    check("describes no bytelm model")
    config.write_text("[]")
    check("describes no bytelm model")
    config.write_bytes(b"\xff{")
    check("cannot be read")
    config.unlink()
    check("no config.json")
    weights.write_bytes(good[weights][:-1])
    check("cannot be read")
    weights.write_bytes(b"")
    check("cannot be read")
    weights.unlink()
    check("cannot be read")
    from_pretrained(folder)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model at"):
        from_pretrained(tmp_path / "missing")
    with pytest.raises(ValueError, match="is a file"):
        from_pretrained(_saved(tmp_path) / "config.json")


def test_a_repository_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved(tmp_path)
    asked: list[str] = []

    def download(repository: str, **options: object) -> str:
        asked.append(repository)
        if repository != "someone/model":
            raise ConnectionError("no such repository\nand more lines")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert from_pretrained("someone/model")[0].config == tiny_config("two")
    with pytest.raises(ValueError, match=r"no folder someone/else here.*no such repository\)"):
        from_pretrained("someone/else")
    assert asked == ["someone/model", "someone/else"]
