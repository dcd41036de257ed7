"""Generation: from an untrained model every file is valid, prompts are kept, seeds repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from commands import TINY_MODEL, bytelm

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header
from bytelm.model.config import ModelConfig
from bytelm.model.hub import save_pretrained
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.generate import Request, Sampling, generate_payloads

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


def tiny() -> Megabyte:
    torch.manual_seed(2)
    config = ModelConfig.from_dict({**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.4})
    return Megabyte(config).eval()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    model = tiny()
    save_pretrained(model, model.config, tmp_path / "model", {"views": VIEWS})
    return tmp_path / "model"


def test_bytes_are_the_models_own_likeliest(tmp_path: Path) -> None:
    """At temperature 0, every byte is the likeliest of the uncached forward over the framed
    piece, and the pieces after the first open with the preamble at their offset."""
    model = tiny()
    header = Header(width=10, height=12, channels=3)
    request = Request("image", header, 360, prompt=bytes(range(100)))
    (payload,) = generate_payloads(model, request, "raster", 1, Sampling(temperature=0), "fp32")
    assert payload[:100] == bytes(range(100))
    assert len(payload) == 360
    opening = framing.preamble_length(MODALITIES["image"], 8)
    room = model.config.context - opening
    for offset in range(0, 360, room):
        piece = np.frombuffer(payload[offset : offset + room], np.uint8)
        head = framing.preamble(MODALITIES["image"], header, "raster", offset, 8)
        ids = torch.from_numpy(np.concatenate([head, piece, np.full(-len(piece) % 8, 256)])).long()
        with torch.no_grad():
            likeliest = model.logits(ids[None])[0, :, :256].argmax(1)
        begin = max(0, 100 - offset)
        drawn = likeliest[opening + begin : opening + len(piece)]
        assert drawn.numpy().astype(np.uint8).tobytes() == piece[begin:].tobytes()


def test_a_files_bytes_depend_on_its_seed_and_not_on_its_batch() -> None:
    request = Request("text", Header(), 60, b"sea")
    model = tiny()

    def make(count: int, seed: int) -> list[bytes]:
        return generate_payloads(model, request, "utf8", count, Sampling(seed=seed), "fp32")

    batch = make(5, 10)
    assert len(set(batch)) == 5
    assert [make(1, 10 + i)[0] for i in range(5)] == batch


def test_every_file_of_an_untrained_model_is_valid(model_folder: Path, tmp_path: Path) -> None:
    """Texts far longer than the context, of any characters; odd sizes; stereo."""
    out = tmp_path / "out"

    def make(modality: str, *arguments: object) -> list[Path]:
        shown = bytelm(
            "generate", model_folder, "--modality", modality, "--out", out, *arguments
        ).stdout
        return [Path(line) for line in shown.splitlines()]

    for path in make("text", "--count", 6, "--bytes", 700, "--prompt", "Кит"):
        content = path.read_bytes()
        assert content.decode("utf-8").startswith("Кит")
        assert len(content) <= 700
    for path in make("image", "--count", 2, "--size", "7x19"):
        with PIL.Image.open(path) as opened:
            opened.load()
            assert (opened.format, opened.size, opened.mode) == ("PNG", (7, 19), "RGB")
    for path in make("image", "--size", "5x5", "--grey"):
        with PIL.Image.open(path) as opened:
            assert opened.mode == "L"
    for path in make("audio", "--count", 2, "--seconds", 0.02, "--rate", 8000, "--channels", 2):
        samples, rate = soundfile.read(path, dtype="int16")
        assert (samples.shape, rate) == ((160, 2), 8000)


def test_prompts_of_files_are_kept(model_folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "top.png")
    out = tmp_path / "out"
    common = ("generate", model_folder, "--out", out, "--modality")
    size = ("--size", "9x12", "--prompt-rows", 4)
    bytelm(*common, "image", "--prompt", tmp_path / "top.png", *size)
    made = np.asarray(PIL.Image.open(out / "image-000.png"))
    assert (made[:4] == pixels[:4]).all()
    assert (made[4:] != pixels[4:]).any()

    sound = np.random.default_rng(1).integers(-9999, 9999, 400, np.int16)
    soundfile.write(tmp_path / "start.wav", sound, 8000)
    length = ("--rate", 8000, "--seconds", 0.03, "--prompt-seconds", 0.01)
    bytelm(*common, "audio", "--prompt", tmp_path / "start.wav", *length)
    made, _ = soundfile.read(out / "audio-000.wav", dtype="int16")
    assert (made[:80] == sound[:80]).all()
    assert len(made) == 240


def test_mistakes_are_one_line(model_folder: Path, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "small.png")
    common = ("generate", model_folder, "--out", tmp_path / "o", "--modality")
    for arguments, message in (
        (("image", "--size", "64"), "WIDTHxHEIGHT"),
        (("image", "--size", "8x8", "--prompt", tmp_path / "small.png"), "4 pixels wide"),
        (("image", "--size", "4x4", "--prompt", tmp_path / "small.png"), "shorter prompt"),
        (("image", "--prompt", tmp_path / "none.png"), "none.png"),
        (("text", "--prompt", "long", "--bytes", 3), "shorter prompt"),
        (("text", "--count", 0), "at least 1"),
        (("text", "--top-p", 0), "top_p"),
        (("audio", "--seconds", 0), "make it longer"),
    ):
        result = bytelm(*common, *arguments, status=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
