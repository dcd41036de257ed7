"""Compression by a model that learns from each file while it codes it."""

from __future__ import annotations

import dataclasses
import io
import math
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from helpers.commands import TINY_MODEL, bytelm

from bytelm.model.adaptation import TRAINED, Adaptation
from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.compression.compress import compress_documents, decompress_documents
from bytelm.pipelines.compression.container import pack, unpack
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.evaluation import ADAPT
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare

DEMO = Path(__file__).parents[2] / "examples" / "demo"
VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
MIXING = {"codec_features": True, "output_mixing": True}
FAST = Adaptation(rate=0.01, window=96, step=48)


def tiny(**options: object) -> Megabyte:
    torch.manual_seed(4)
    shape = {**TINY_MODEL, "embedding_std": 0.3, "init_std": 0.2, **options}
    return Megabyte(ModelConfig.from_dict(shape)).eval()


def small_files() -> list[tuple[str, bytes]]:
    """Files of every kind, from an empty one to some of several windows."""
    rng = np.random.default_rng(0)
    image, sound = io.BytesIO(), io.BytesIO()
    PIL.Image.fromarray(rng.integers(0, 256, (9, 31, 3), np.uint8)).save(image, "PNG")
    soundfile.write(sound, rng.integers(-999, 999, (150, 2), np.int16), 8000, format="WAV")
    return [
        ("long.txt", b"Call me Ishmael. " * 60),
        ("empty.txt", b""),
        ("odd.png", image.getvalue()),
        ("two.wav", sound.getvalue()),
        *((f"{size}.txt", b"x" * size) for size in (78, 79, 80)),  # around a window's end
    ]


def content(name: str, data: bytes) -> object:
    """Pixels, samples, or bytes of a file."""
    if name.endswith(".png"):
        return np.asarray(PIL.Image.open(io.BytesIO(data))).tolist()
    if name.endswith(".wav"):
        return soundfile.read(io.BytesIO(data), dtype="int16")[0].tolist()
    return data


@pytest.mark.parametrize("options", [{}, MIXING, {"modality_heads": 3, "tie_embeddings": False}])
def test_files_come_back(options: dict[str, bool]) -> None:
    model, files = tiny(**options), small_files()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = compress_documents(model, VIEWS, files, adaptation=FAST)
    restored = decompress_documents(model, packed)
    assert [name for name, _ in restored] == [name for name, _ in files]
    for (name, data), (_, back) in zip(files, restored, strict=True):
        assert content(name, back) == content(name, data), name
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    if options != MIXING:  # mixing learns by itself, and random data teach no network
        assert len(packed) < len(compress_documents(model, VIEWS, files))


@pytest.mark.parametrize("options", [{}, MIXING])
def test_the_size_is_what_evaluation_says(tmp_path: Path, options: dict[str, bool]) -> None:
    chosen = ["image/val/1f199.png", "text/train/sotu_1790_george_washington_n.txt"]
    files = [Path(shutil.copy(DEMO / name, tmp_path)) for name in chosen]
    prepare(files, tmp_path / "set", PrepareOptions(shares=(0.0, 1.0, 0.0)))
    model = tiny(**options)
    save_pretrained(model, model.config, tmp_path / "model", {"views": VIEWS})
    location = str(tmp_path / "set")
    scores = evaluate(tmp_path / "model", [location], "val", 1, "fp32", ADAPT).model
    payload = sum(f["payload_bytes"] for name, f in scores.items() if name != "total")
    coded = scores["total"]["coded_bits_per_byte"] * payload / 8
    documents = [(file.name, file.read_bytes()) for file in files]
    packed = compress_documents(model, VIEWS, documents, adaptation=TRAINED)
    assert 4 * unpack(packed, "it").words.size == pytest.approx(coded, rel=2e-3)


def test_a_file_is_coded_as_if_it_were_alone() -> None:
    """A file adds as many words whichever files were coded before it."""
    model, long = tiny(**MIXING), small_files()[0]
    sizes = []
    for others in ([], [("a.txt", b"Call me Ishmael. " * 60)], [("a.txt", b"whale" * 200)]):
        with_it, without = (
            compress_documents(model, VIEWS, files, adaptation=FAST)
            for files in ([*others, long], others)
        )
        sizes.append(unpack(with_it, "it").words.size - unpack(without, "it").words.size)
    assert max(sizes) - min(sizes) <= 4


def test_impossible_settings_are_damage() -> None:
    model = tiny()
    container = unpack(compress_documents(model, VIEWS, [("a", b"b")], adaptation=FAST), "it")
    assert container.adaptation == FAST
    for adaptation in (
        Adaptation(-1.0, 96, 48),
        Adaptation(0.1, 96, 0),
        Adaptation(math.nan, 96, 48),
    ):
        packed = pack(dataclasses.replace(container, adaptation=adaptation))
        with pytest.raises(DamageError, match="its description is none"):
            decompress_documents(model, packed)


def test_the_container_names_the_preset_of_random_weights() -> None:
    named = dataclasses.replace(FAST, preset="preset:mini:7")
    packed = compress_documents(tiny(), VIEWS, [("a", b"b")], adaptation=named)
    assert unpack(packed, "it").adaptation == named
    with pytest.raises(ValueError, match="give preset:mini:7"):
        decompress_documents(tiny(init_std=0.1), packed)


def test_the_commands(tmp_path: Path) -> None:
    model = tiny(**MIXING)
    save_pretrained(model, model.config, tmp_path / "model", {"views": VIEWS})
    (tmp_path / "whale.txt").write_text("the white whale " * 40)
    packed = tmp_path / "f.blm"
    bytelm("compress", tmp_path / "model", tmp_path / "whale.txt", "--out", packed, "--adapt")
    assert unpack(packed.read_bytes(), "it").adaptation == TRAINED
    bytelm("decompress", tmp_path / "model", packed, "--out", tmp_path / "back")
    restored = (tmp_path / "back" / "whale.txt").read_bytes()
    assert restored == (tmp_path / "whale.txt").read_bytes()
