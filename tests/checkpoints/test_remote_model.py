"""Models at URLs: the checkpoints that a training has uploaded, found, checked and cached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import TINY_MODEL, status
from helpers.object_store import ObjectStore, object_store
from helpers.run_folders import add_checkpoint
from helpers.web_server import serving

import bytelm
from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.load import settled_location
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.checkpoints.remote_model import fetched_model
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.runtime.ranks import Ranks
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.storage.destination import open_destination

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
URL = "s3://bucket/runs/first"
STEPS = (8, 12)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder for the test, which has the cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with two checkpoints of different models."""
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.3})
    for step in STEPS:
        torch.manual_seed(step)
        model = tmp_path / f"model-{step}"
        save_pretrained(Megabyte(config), config, model, {"views": VIEWS})
        add_checkpoint(tmp_path / "run", model, step)
    return tmp_path / "run"


@pytest.fixture
def store(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store that has the run at URL."""
    with object_store(monkeypatch) as store, open_destination(URL) as target:
        for path in sorted(run.rglob("step-*/**/*")):
            if path.is_file():
                target.upload(path, path.relative_to(run).as_posix())
        yield store


def checkpoint_url(step: int) -> str:
    return f"{URL}/checkpoints/step-{step:08d}"


def damage(step: int, name: str) -> None:
    """Change a byte of a file of a checkpoint in the store."""
    folder = f"checkpoints/step-{step:08d}"
    with open_destination(URL) as target:
        data = target.read(f"{folder}/{name}", 1 << 24)
        target.write(f"{folder}/{name}", data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


def fetched_bytes(url: str) -> bytes:
    with fetched_model(url) as folder:
        return (folder / "model.safetensors").read_bytes()


def weights_of(run: Path, step: int) -> bytes:
    return (run / f"checkpoints/step-{step:08d}/model/model.safetensors").read_bytes()


def test_the_newest_model_of_a_run_and_that_of_a_checkpoint(
    run: Path, store: ObjectStore, home: Path
) -> None:
    assert fetched_bytes(URL) == fetched_bytes(f"{URL}/") == weights_of(run, 12)
    assert fetched_bytes(checkpoint_url(8)) == weights_of(run, 8)
    cached = [path for path in (home / ".cache/bytelm/shards").iterdir() if path.name != ".lock"]
    assert len(cached) == 3, "two files of weights, and a config that both have"
    with open_destination(URL) as target:
        target.delete(name for name in target.list("checkpoints") if "/model/" in name)
    assert fetched_bytes(URL) == weights_of(run, 12), "from the cache"


def test_damaged_checkpoints_are_passed_over_and_named(
    run: Path, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged cached file is fetched again; one of the store is refused, as is a manifest."""
    damage(12, "model/model.safetensors")
    assert fetched_bytes(URL) == weights_of(run, 8)
    assert f"refused {checkpoint_url(12)}: " in capsys.readouterr().err
    with pytest.raises(DamageError, match="SHA-256"):
        fetched_bytes(checkpoint_url(12))
    damage(8, "manifest.json")
    with pytest.raises(DamageError, match=r"no checkpoint of .*does not match its own checksum"):
        fetched_bytes(URL)


def test_what_is_no_checkpoint_is_refused_in_a_line(store: ObjectStore) -> None:
    for url, message in (
        ("s3://bucket/none", "neither a run with a checkpoint nor a checkpoint"),
        (checkpoint_url(9), "no whole checkpoint at"),
        ("ftp://bucket/run", "is not among the allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            bytelm.load(url)


def test_a_web_server_has_a_checkpoint_by_its_name(run: Path) -> None:
    """It lists nothing, so that a run itself is refused."""
    with serving() as web:
        place = "/runs/first/checkpoints/step-00000012"
        for path in (run / "checkpoints/step-00000012").rglob("*.*"):
            web.objects[f"{place}/{path.relative_to(run / place[12:])}"] = path.read_bytes()
        host = web.url.removesuffix("/set")
        assert fetched_bytes(f"{host}{place}") == weights_of(run, 12)
        with pytest.raises(ValueError, match="does not list a run's checkpoints: name one"):
            fetched_bytes(f"{host}/runs/first")


class OtherRank(Ranks):
    """A rank of two, to which rank 0 says what it has chosen."""

    def gather(self, part: Any) -> list[Any]:
        return ["what rank 0 says", part]


def test_rank_0_chooses_the_checkpoint_of_all_ranks(
    run: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(12, "model/model.safetensors")
    monkeypatch.setattr(Ranks, "gather", lambda ranks, part: [part, ""])
    monkeypatch.setattr(Ranks, "together", lambda ranks, work: work())
    assert settled_location(URL, Ranks()) == URL
    first = Ranks(0, 2)
    assert settled_location(f"{URL}/", first) == checkpoint_url(8)
    assert settled_location(checkpoint_url(8), first) == checkpoint_url(8)
    assert settled_location(run, first) == str(run / "checkpoints/step-00000012/model")
    assert settled_location("s3://bucket/none", OtherRank(1, 2)) == "what rank 0 says"


def test_commands_take_a_url(
    mixed_set: ShardSet,
    run: Path,
    store: ObjectStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The figures, files and containers are those of the run's folder, where alone an evaluation
    is kept."""

    def scores(model: object) -> dict[str, Any]:
        assert status(["evaluate", str(model), "--data", mixed_set.location, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    local, remote = scores(run), scores(URL)
    assert [scored["about"].pop("model") for scored in (local, remote)] == [str(run), URL]
    assert all(scored["about"].pop("date") for scored in (local, remote))
    assert remote == local
    assert len(list((run / "evaluations").iterdir())) == 1

    text = tmp_path / "a.txt"
    text.write_text("the white whale " * 40)
    packed, back = tmp_path / "a.blm", tmp_path / "back"
    assert status(["compress", URL, str(text), "--out", str(packed)]) == 0
    assert status(["decompress", str(run), str(packed), "--out", str(back)]) == 0
    assert (back / "a.txt").read_bytes() == text.read_bytes()
    for model, out in ((URL, tmp_path / "url"), (str(run), tmp_path / "folder")):
        options = ["--modality", "text", "--max-bytes", "100", "--out", str(out)]
        assert status(["generate", model, *options]) == 0
    drawn = [[p.read_bytes() for p in (tmp_path / n).glob("*.txt")] for n in ("url", "folder")]
    assert drawn[0] == drawn[1] != []
    assert bytelm.load(URL).generate("text", max_bytes=100) == drawn[0]
