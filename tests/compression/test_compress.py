"""Compression: exact restoration, size, and refusal of what cannot be decoded."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from helpers.commands import TINY_MODEL, bytelm, command, environment
from helpers.mutants import mutate

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.compression.compress import (
    compress,
    compress_documents,
    decompress,
    decompress_documents,
)
from bytelm.pipelines.compression.container import pack, unpack
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.evaluation.evaluate import evaluate
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare

DEMO = Path(__file__).parents[2] / "examples" / "demo"
VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
MIXING = {"codec_features": True, "output_mixing": True}


def tiny(**options: object) -> Megabyte:
    torch.manual_seed(4)
    shape = {**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.2, **options}
    return Megabyte(ModelConfig.from_dict(shape)).eval()


def read(path: Path) -> tuple[object, ...]:
    """A file's pixels, samples, or bytes."""
    if path.suffix.lower() in (".png", ".jpg"):
        with PIL.Image.open(path) as image:
            return np.asarray(image.convert("RGB")).tolist(), image.size
    if path.suffix in (".wav", ".flac"):
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        return samples.tolist(), rate
    return (path.read_bytes(),)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files of every kind, from empty ones to some far longer than the context of 256."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "long.txt").write_text("Call me Ishmael. " * 60)
    (folder / "latin").write_bytes("naïve".encode("latin-1"))
    (folder / "empty.txt").write_bytes(b"")
    (folder / "random.bin").write_bytes(b"\0" + rng.bytes(500))
    (folder / "broken").write_bytes(b"\x89PNG\r\n\x1a\n" + rng.bytes(40))
    pixels = rng.integers(0, 256, (9, 31, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "odd.png")
    PIL.Image.fromarray(pixels[:, :, 0]).save(folder / "grey.PNG")
    PIL.Image.fromarray(pixels).save(folder / "photo.jpg")
    soundfile.write(folder / "two.wav", rng.integers(-999, 999, (300, 2), np.int16), 8000)
    soundfile.write(folder / "one.flac", rng.integers(-9, 9, 256, np.int16), 16000)
    (folder / "fits.txt").write_bytes(b"x" * 246)  # with EOM and EOD exactly the context
    (folder / "split.txt").write_bytes(b"x" * 247)  # EOD alone in its second piece
    return sorted(folder.iterdir())


def by_name(paths: list[Path]) -> dict[str, Path]:
    return {path.name: path for path in paths}


@pytest.mark.parametrize(("batch", "options"), [(7, {}), (64, {}), (1, MIXING), (4, MIXING)])
def test_files_come_back(
    files: list[Path], tmp_path: Path, batch: int, options: dict[str, bool]
) -> None:
    model, out = tiny(**options), tmp_path / "f.blm"
    lines = compress(model, VIEWS, files, out, keep_files=False, batch=batch)
    assert len(lines) == len(files) + 1
    restored = by_name(decompress(model, out, tmp_path / "back")[0])
    names = {"photo.jpg": "photo.jpg.png", "grey.PNG": "grey.png"}
    assert set(restored) == {names.get(file.name, file.name) for file in files}
    for file in files:
        back = restored[names.get(file.name, file.name)]
        assert read(back) == read(file), file


def test_kept_files_come_back_bit_for_bit(files: list[Path], tmp_path: Path) -> None:
    model, out = (
        tiny(modality_heads=3, tie_embeddings=False, cross_patch_attention=2),
        tmp_path / "f",
    )
    compress(model, VIEWS, files, out, keep_files=True, batch=64)
    restored = by_name(decompress(model, out, tmp_path / "back")[0])
    assert {n: p.read_bytes() for n, p in restored.items()} == {
        file.name: file.read_bytes() for file in files
    }


def test_documents_in_memory_are_the_files_and_the_container(
    files: list[Path], tmp_path: Path
) -> None:
    model, out = tiny(), tmp_path / "f.blm"
    compress(model, VIEWS, files, out, keep_files=False, batch=64)
    packed = compress_documents(model, VIEWS, [(file.name, file.read_bytes()) for file in files])
    assert packed == out.read_bytes()
    restored, _ = decompress(model, out, tmp_path / "back")
    assert decompress_documents(model, packed) == [(p.name, p.read_bytes()) for p in restored]
    assert decompress_documents(model, compress_documents(model, VIEWS, [])) == []

    with pytest.raises(ValueError, match="at least 1"):
        compress_documents(model, VIEWS, [("a", b"")], batch=0)
    with pytest.raises(ValueError, match="a and a would both be restored as a"):
        compress_documents(model, VIEWS, [("a", b"1"), ("a", b"2")])
    with pytest.raises(ValueError, match="no name for a file"):
        compress_documents(model, VIEWS, [("../b", b"")])
    with pytest.raises(DamageError, match="the container is damaged"):
        decompress_documents(model, packed[:-1])


def test_what_a_view_does_not_keep_comes_back_bit_for_bit(
    files: list[Path], tmp_path: Path
) -> None:
    """A 16-bit sound under an 8-bit view."""
    model, out = tiny(), tmp_path / "f.blm"
    sound = next(file for file in files if file.name == "one.flac")
    compress(model, {**VIEWS, "audio": "mulaw"}, [sound], out, keep_files=False, batch=1)
    ((back,), _) = decompress(model, out, tmp_path / "back")
    assert back.read_bytes() == sound.read_bytes()


@pytest.mark.parametrize(("options", "share"), [({}, 1e-5), (MIXING, 1e-3)])
def test_the_size_is_what_evaluation_says(
    tmp_path: Path, options: dict[str, bool], share: float
) -> None:
    """Files of the demo under an untrained model."""
    chosen = ["image/val/1f199.png", "audio/train/sfx_bd_haus.flac"]
    chosen += ["text/train/sotu_1790_george_washington_n.txt"]
    files = [Path(shutil.copy(DEMO / name, tmp_path)) for name in chosen]
    prepare(files, tmp_path / "set", PrepareOptions(shares=(0.0, 1.0, 0.0)))
    # The coder spends 24 bits at most on an id. By the mixture 36 ids would take up to 31, and so 8
    # bytes more in all; the network alone stays below 17.
    model = tiny(embedding_std=0.3, **options)
    save_pretrained(model, model.config, tmp_path / "model", {"views": VIEWS})
    scores = evaluate(tmp_path / "model", [str(tmp_path / "set")], "val", 1, "fp32").model
    compress(model, VIEWS, files, tmp_path / "f.blm", keep_files=False, batch=64)
    payload = sum(scores[name]["payload_bytes"] for name in VIEWS)
    coded = scores["total"]["coded_bits_per_byte"] * payload / 8
    words = unpack((tmp_path / "f.blm").read_bytes(), "f.blm").words
    assert 4 * words.size == pytest.approx(coded, abs=8 + share * coded)
    assert (tmp_path / "f.blm").stat().st_size < coded + 64 * len(files) + 100


@pytest.fixture
def small(tmp_path: Path) -> tuple[Megabyte, Path, bytes]:
    """A model, a container of a text and an image by it, and the container's bytes."""
    (tmp_path / "a.txt").write_text("the white whale")
    PIL.Image.new("RGB", (3, 2), "red").save(tmp_path / "b.png")
    model, out = tiny(), tmp_path / "f.blm"
    compress(model, VIEWS, [tmp_path / "a.txt", tmp_path / "b.png"], out, False, 64)
    return model, out, out.read_bytes()


def test_every_mutant_is_refused(small: tuple[Megabyte, Path, bytes], tmp_path: Path) -> None:
    model, path, packed = small
    rng = np.random.default_rng(1)
    mutants = [mutate(packed, rng) for _ in range(150)]
    mutants += [packed[: rng.integers(len(packed))] for _ in range(25)]
    for i in rng.integers(0, len(packed), 25):
        mutants.append(packed[:i] + bytes([packed[i] ^ 1 << i % 8]) + packed[i + 1 :])
    changed = [mutant for mutant in mutants if mutant != packed]
    assert len(changed) > 190
    for mutant in changed:
        path.write_bytes(mutant)
        with pytest.raises(ValueError, match=r"damaged|no file that"):
            decompress(model, path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_words_that_do_not_decode_are_refused(
    small: tuple[Megabyte, Path, bytes], tmp_path: Path
) -> None:
    """Wrong words, or another build's, in a container whose own checksum is right."""
    model, path, packed = small
    container = unpack(packed, "f.blm")
    rng = np.random.default_rng(2)
    first, second = container.entries
    for change in (
        *({"words": rng.integers(0, 2**32, len(container.words), np.uint32)} for _ in range(20)),
        {"words": container.words[:-2]},
        {"words": np.append(container.words, container.words)},
        {"entries": (dataclasses.replace(first, size=first.size + 1), second)},
        {"entries": (first, dataclasses.replace(second, size=second.size - 3))},
        {"entries": (dataclasses.replace(first, crc=1), second)},
        {"entries": (first, dataclasses.replace(second, name="b.txt"))},
        {"batch": 1},
    ):
        path.write_bytes(pack(dataclasses.replace(container, **change)))
        with pytest.raises(DamageError, match="does not decode"):
            decompress(model, path, tmp_path / "back")
    other = dataclasses.replace(container, build="torch 1", batch=1)
    path.write_bytes(pack(other))
    with pytest.raises(DamageError, match="made by torch 1 and this is bytelm"):
        decompress(model, path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, "0 threads"),
        ({"batch": 0}, "batches of 0"),
        ({"files": [["a", -1, 1]]}, "-1 bytes"),
        ({"files": [["a", 1, 1], ["a", 1, 1]]}, "one name"),
        ({"files": [["a", 1]]}, "damaged"),
        ({"files": 3}, "damaged"),
        ({"threads": [1]}, "damaged"),
    ],
)
def test_a_description_that_cannot_be_is_refused(
    small: tuple[Megabyte, Path, bytes], change: dict[str, object], message: str
) -> None:
    packed = small[2]
    size = int.from_bytes(packed[20:24])
    description = json.loads(zlib.decompress(packed[24 : 24 + size]))
    deflated = zlib.compress(json.dumps({**description, **change}).encode())
    forged = packed[:20] + len(deflated).to_bytes(4) + deflated + packed[24 + size : -4]
    with pytest.raises(DamageError, match=message):
        unpack(forged + zlib.crc32(forged).to_bytes(4), "f.blm")


def test_the_commands(files: list[Path], tmp_path: Path) -> None:
    model, blm, back = tmp_path / "model", tmp_path / "made" / "f.blm", tmp_path / "back"
    save_pretrained(tiny(), tiny().config, model, {"views": VIEWS})
    chosen = by_name(files)
    inputs = (chosen["odd.png"], chosen["one.flac"], chosen["fits.txt"])
    shown = bytelm("compress", model, *inputs, "--out", blm).stdout.splitlines()
    assert "odd.png: image in view raster, 837 bytes, comes back as odd.png" in shown[0]
    assert f"{blm}: 1,595 bytes in {blm.stat().st_size:,}, " in shown[3]
    shown = bytelm("decompress", model, blm, "--out", back).stdout.split()
    assert shown == [str(back / file.name) for file in inputs]
    assert [read(back / file.name) for file in inputs] == [read(file) for file in inputs]

    error = bytelm("decompress", model, blm, "--out", back, status=2).stderr
    assert error == (
        f"bytelm decompress: {back / 'odd.png'} exists: choose another --out, or remove it\n"
    )
    blm.write_bytes(blm.read_bytes()[:-9])
    error = bytelm("decompress", model, blm, "--out", tmp_path / "x", status=1).stderr
    assert error == f"bytelm decompress: {blm} is damaged or cut: its checksum is wrong\n"


def test_mistakes_are_named(small: tuple[Megabyte, Path, bytes], tmp_path: Path) -> None:
    model, path, _ = small
    with pytest.raises(ValueError, match="give the model that compressed it"):
        decompress(tiny(init_std=0.1), path, tmp_path / "x")
    for container, message in (
        (tmp_path / "none", "cannot read"),
        (tmp_path / "a.txt", "no file that"),
    ):
        with pytest.raises(ValueError, match=message):
            decompress(model, container, tmp_path / "x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("another of this name")
    same = [tmp_path / "a.txt", tmp_path / "other" / "a.txt"]
    for paths, out, batch, message in (
        ([tmp_path / "none"], "x", 1, "cannot read"),
        (same[:1], "f.blm", 1, "exists"),
        (same[:1], "x", 0, "at least 1"),
        (same, "x", 1, r"both be restored as a\.txt"),
    ):
        with pytest.raises(ValueError, match=message):
            compress(model, VIEWS, paths, tmp_path / out, False, batch)
    assert not (tmp_path / "x").exists()


def test_a_folder_comes_back_with_the_names_of_its_files(
    small: tuple[Megabyte, Path, bytes], tmp_path: Path
) -> None:
    model, _, packed = small
    folder, back = tmp_path / "folder", tmp_path / "back"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "naïve.txt").write_text("deep")
    (folder / "top").write_bytes(b"")
    (folder / "linked").symlink_to(folder / "a")
    (folder / "gone").symlink_to(folder / "nothing")
    lines = compress(model, VIEWS, [folder], tmp_path / "folder.blm", False, 64)
    assert sum(line.endswith("left out, no regular file") for line in lines) == 2
    paths, problems = decompress(model, tmp_path / "folder.blm", back)
    assert {path.relative_to(back).as_posix(): path.read_bytes() for path in paths} == {
        "top": b"",
        "a/b/naïve.txt": b"deep",
    }
    assert not problems
    assert (tmp_path / "folder.blm").read_bytes()[3] == 2
    assert packed[3] == 1  # as before, where no name has a folder
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no file"):
        compress(model, VIEWS, [tmp_path / "none"], tmp_path / "x", False, 64)


def test_a_name_is_measured_in_bytes_with_its_new_suffix(tmp_path: Path) -> None:
    """Eighty-three letters of three bytes and `.jpg` are 253, which `.png` makes 257."""
    model, name = tiny(), "\u3042" * 83 + ".jpg"
    PIL.Image.new("RGB", (3, 2), "red").save(tmp_path / name)
    with pytest.raises(ValueError, match="257 bytes, and file systems take 255: rename it"):
        compress(model, VIEWS, [tmp_path / name], tmp_path / "x.blm", False, 64)
    compress(model, VIEWS, [tmp_path / name], tmp_path / "x.blm", True, 64)
    ((back,), _) = decompress(model, tmp_path / "x.blm", tmp_path / "back")
    assert back.name == name


@pytest.mark.parametrize(
    "name", ["../a.txt", "/etc/a", "a//b", "a/./b", "..", "\u3042" * 90, "b.png/c"]
)
def test_one_impossible_name_leaves_the_other_files(
    small: tuple[Megabyte, Path, bytes], tmp_path: Path, name: str
) -> None:
    model, path, packed = small
    container = unpack(packed, "f.blm")
    text, picture = container.entries
    entries = (dataclasses.replace(text, name=name), picture)
    path.write_bytes(pack(dataclasses.replace(container, entries=entries)))
    before = {p.name for p in tmp_path.iterdir()}
    paths, problems = decompress(model, path, tmp_path / "deep" / "back")
    if name == "b.png/c":  # written first, and the image has no place then
        assert [p.name for p in paths] == ["c"]
    else:
        assert [p.name for p in paths] == ["b.png"]
    assert len(problems) == 1
    assert {p.name for p in tmp_path.iterdir()} - before == {"deep"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["back"]


def test_standard_input_and_output(tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_pretrained(tiny(), tiny().config, model, {"views": VIEWS})

    def run(*arguments: object, data: bytes) -> subprocess.CompletedProcess[bytes]:
        line = command(*arguments)
        return subprocess.run(line, input=data, capture_output=True, check=True, env=environment())

    packed = run("compress", model, "-", "--out", "-", data=b"the white whale")
    assert b"comes back as stdin" in packed.stderr
    assert packed.stdout.startswith(b"BLM")
    assert run("decompress", model, "-", "--out", "-", data=packed.stdout).stdout == (
        b"the white whale"
    )
    restored = run("decompress", model, "-", "--out", tmp_path / "back", data=packed.stdout)
    assert restored.stdout.decode() == f"{tmp_path / 'back' / 'stdin'}\n"
