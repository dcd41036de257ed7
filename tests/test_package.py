"""The package's face: `import bytelm`, and a model that scores, generates and compresses."""

from __future__ import annotations

import inspect
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from helpers.commands import TINY_MODEL
from helpers.commands import bytelm as run_bytelm
from helpers.source_files import png, small_source, sound, txt

import bytelm
from bytelm.modalities.base import Header
from bytelm.model import presets
from bytelm.model.adaptation import UNTRAINED
from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.cli import main
from bytelm.pipelines.compression.container import unpack
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.evaluation.evaluate import evaluate

DATASET_INFO = DatasetInfo(
    {"text": "utf8", "image": "raster", "audio": "s16be"},
    {"image": [Header(8, 8, 3), Header(9, 5, 1)], "audio": [Header(channels=1, rate=8000)]},
    frozenset({("text", "image"), ("image", "text")}),
    frozenset({"text", "image", "audio"}),
)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.4})
    save_pretrained(Megabyte(config), config, tmp_path / "model", DATASET_INFO.to_extra())
    return tmp_path / "model"


@pytest.fixture
def model(model_folder: Path) -> bytelm.LanguageModel:
    return bytelm.load(model_folder)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A file of each modality, of several pieces each."""
    paths = {"text": tmp_path / "a.txt", "image": tmp_path / "a.png", "audio": tmp_path / "a.flac"}
    txt(paths["text"], "the white whale " * 40)
    png(paths["image"], 16, 12)
    sound(paths["audio"], 500)
    return paths


def test_the_import_is_fast_and_brings_no_torch() -> None:
    probe = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "import bytelm\n"
        "print(time.perf_counter() - start)\n"
        "print(sorted({'torch', 'numpy', 'rich', 'argparse'} & set(sys.modules)))"
    )
    shown = [
        subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        ).stdout.split("\n")
        for _ in range(3)
    ]
    assert min(float(lines[0]) for lines in shown) < 0.1
    assert shown[0][1] == "[]"


def test_every_public_name_is_there() -> None:
    for name in bytelm.__all__:
        assert getattr(bytelm, name)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        bytelm.absent  # noqa: B018
    assert (resources.files("bytelm") / "py.typed").is_file()


def test_the_version_stands_once() -> None:
    assert run_bytelm("--version").stdout == f"bytelm {bytelm.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", bytelm.__version__)
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert 'attr = "bytelm.__version__"' in project


def test_a_model_tells_what_it_is(model: bytelm.LanguageModel) -> None:
    assert isinstance(model, bytelm.LanguageModel)
    assert model.config.context == 256
    assert model.views == DATASET_INFO.views
    assert model.dataset_info == DATASET_INFO
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_model_is_loaded_onto_a_device(model_folder: Path) -> None:
    assert bytelm.load(str(model_folder), device="cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match="no model at"):
        bytelm.load(model_folder / "none")


@pytest.mark.parametrize("modality", DATASET_INFO.views)
def test_scores_are_those_of_the_evaluation(
    modality: str,
    model: bytelm.LanguageModel,
    model_folder: Path,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    """A set of the one document, longer than the context."""
    bytelm.prepare([files[modality]], tmp_path / "set", workers=1)
    shard_set = bytelm.open_set(tmp_path / "set")
    (shard,) = shard_set.shards
    figures = evaluate(model_folder, [str(tmp_path / "set")], shard.split, 1, "fp32").model
    nats = model.score(files[modality])
    assert len(nats) == figures[modality]["payload_bytes"] > model.config.context
    bits = nats.sum() / math.log(2) / len(nats)
    assert bits == pytest.approx(figures[modality]["bits_per_byte"], rel=1e-6)
    content = files[modality].read_bytes()
    assert np.array_equal(model.score(content), nats)
    assert np.array_equal(model.score(content, modality), nats)
    if modality == "text":
        assert np.array_equal(model.score(content.decode()), nats)


def test_a_document_that_fits_is_scored_in_a_row_of_its_own_length(
    model: bytelm.LanguageModel,
) -> None:
    """The uncached logits of a short text, byte by byte."""
    text = b"call me"
    ids = torch.tensor([259, *[0] * 5, 256, 256, *text, 257, 258, *[256] * 7])[None, :24]
    with torch.no_grad():
        logits = model.model.logits(ids)[0].double()
    nats = -logits.log_softmax(1)[torch.arange(8, 15), torch.tensor(list(text))]
    assert model.score(text) == pytest.approx(nats.numpy(), abs=1e-5)


def test_what_cannot_be_scored_is_refused(model: bytelm.LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image, no sound and no text"):
        model.score(b"\x00\x01\x02")
    with pytest.raises(ValueError, match="is no image"):
        model.score(b"a text", "image")
    with pytest.raises(ValueError, match="no modality 'video'"):
        model.score(b"a text", "video")
    with pytest.raises(ValueError, match="cannot read"):
        model.score(tmp_path / "none")
    assert len(model.score(b"\x00\x01\x02", "text")) == 3


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"modality": "text", "max_bytes": 60, "prompt": "Кит"}, []),
        ({"modality": "image"}, []),
        ({"modality": "image", "size": (5, 4), "channels": 1}, ["--size", "5x4", "--grey"]),
        ({"modality": "image", "condition_on": "a square", "size": (4, 4)}, ["--size", "4x4"]),
        ({"modality": "audio", "seconds": 0.01, "rate": 8000, "channels": 2}, []),
        ({"modality": "audio", "seconds": 0.04, "prompt_seconds": 0.02, "prompt": "file"}, []),
    ],
    ids=["text", "drawn size", "size", "condition", "audio", "prompt"],
)
def test_what_is_generated_is_what_the_command_writes(
    options: dict[str, Any],
    arguments: list[str],
    model: bytelm.LanguageModel,
    model_folder: Path,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    if options.get("prompt") == "file":
        options = {**options, "prompt": files["audio"]}
    options = {**options, "count": 3, "seed": 7, "temperature": 0.9, "top_k": 200, "top_p": 0.98}
    command = ["generate", str(model_folder), "--out", str(tmp_path / "out"), *arguments]
    by_hand = {"size", "channels"} if options["modality"] == "image" else set()
    for name in options.keys() - by_hand:
        command += [f"--{name.replace('_', '-')}", str(options[name])]
    assert main.main(command) == 0
    results = model.generate(**options)
    paths = sorted((tmp_path / "out").iterdir())
    assert len(results) == len(paths) == 3
    for result, path in zip(results, paths, strict=True):
        if isinstance(result, bytes):
            assert result == path.read_bytes()
        elif isinstance(result, PIL.Image.Image):
            with PIL.Image.open(path) as written:
                assert (result.mode, result.size) == (written.mode, written.size)
                assert result.tobytes() == written.tobytes()
        else:
            samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
            assert np.array_equal(result[0], samples)
            assert result[1] == rate


def test_prompts_may_be_the_bytes_of_files(
    model: bytelm.LanguageModel, files: dict[str, Path]
) -> None:
    by_path = model.generate("image", prompt=files["image"], prompt_rows=10)
    by_bytes = model.generate("image", prompt=files["image"].read_bytes(), prompt_rows=10)
    assert by_path[0].tobytes() == by_bytes[0].tobytes()
    assert model.generate(condition_on=files["image"].read_bytes(), max_bytes=9)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        model.generate("image", size=(4, 4), channels=2)
    with pytest.raises(ValueError, match="at least 1"):
        model.generate("image", size=(0, 4))
    with pytest.raises(ValueError, match="no modality"):
        model.generate("video")
    with pytest.raises(ValueError, match="give a text"):
        model.generate(prompt=b"bytes")


def test_any_bytes_come_back_from_compression(
    model: bytelm.LanguageModel, files: dict[str, Path]
) -> None:
    contents = [path.read_bytes() for path in files.values()]
    for data in (*contents, contents[1][:100], random.Random(0).randbytes(300), b"x", b""):
        packed = model.compress(data)
        assert model.decompress(packed) == data
    with pytest.raises(ValueError, match="no file that"):
        model.decompress(b"not packed")


def test_a_model_learns_from_what_it_compresses(model: bytelm.LanguageModel) -> None:
    data = b"the white whale, the white sea, the white sky; " * 200
    adapted = model.compress(data, adapt=True)
    assert model.decompress(adapted) == data
    assert len(adapted) < 0.9 * len(model.compress(data))


def test_random_weights_compress_by_what_they_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "mini", ModelConfig.from_dict(TINY_MODEL))
    model = bytelm.load("preset:mini", device="cpu")
    packed = model.compress(b"from nothing", adapt=True)
    assert unpack(packed, "it").adaptation == replace(UNTRAINED, preset="preset:mini:0")
    assert model.decompress(packed) == b"from nothing"


def test_what_was_compressed_is_restored_by_the_command(
    model: bytelm.LanguageModel, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.blm").write_bytes(model.compress(b"the white whale", name="whale.txt"))
    assert (
        main.main(
            ["decompress", str(model_folder), str(tmp_path / "one.blm"), "--out", str(tmp_path)]
        )
        == 0
    )
    assert (tmp_path / "whale.txt").read_bytes() == b"the white whale"
    two = [tmp_path / "whale.txt", tmp_path / "sea.txt"]
    two[1].write_text("sea")
    command = ["compress", str(model_folder), *map(str, two), "--out", str(tmp_path / "two.blm")]
    assert main.main(command) == 0
    with pytest.raises(ValueError, match="holds 2 files"):
        model.decompress((tmp_path / "two.blm").read_bytes())


def test_a_prepared_set_is_that_of_the_command(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    prepared = bytelm.prepare([source], tmp_path / "one", workers=2, rate=8000, shard_mb=0.01)
    command = ["prepare", str(source), "--out", str(tmp_path / "two"), "--workers", "2"]
    assert main.main([*command, "--rate", "8000", "--shard-mb", "0.01"]) == 0
    assert prepared.root == bytelm.open_set(tmp_path / "one").root
    assert prepared.root == bytelm.open_set(str(tmp_path / "two")).root
    alone = bytelm.prepare(str(source), tmp_path / "three", include="*", rate=8000, shard_mb=0.01)
    assert alone.root == prepared.root
    with pytest.raises(ValueError, match="no shard set"):
        bytelm.open_set(tmp_path / "none")


@pytest.mark.parametrize(
    ("command", "function", "differing"),
    [
        ("prepare", bytelm.prepare, {"sources", "out", "show_progress", "part", "count_for"}),
        (
            "generate",
            bytelm.LanguageModel.generate,
            {"model", "self", "modality", "out", "size", "grey", "sheet", "stream", "flac"}
            | {"processes"},
        ),
    ],
)
def test_keywords_are_the_commands_options(
    command: str, function: Any, differing: set[str]
) -> None:
    (subparsers,) = (a for a in main.build_parser()._actions if a.dest == "command")
    actions = subparsers.choices[command]._actions
    options = {a.dest: a.default for a in actions if a.dest != "help"}
    keywords = {n: p.default for n, p in inspect.signature(function).parameters.items()}
    for name in differing:
        options.pop(name, None)
        keywords.pop(name, None)
    assert keywords == options
