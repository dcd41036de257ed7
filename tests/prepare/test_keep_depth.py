"""Files of many bits, from `prepare --keep-depth` through training rows and back to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
from helpers import commands
from helpers.source_files import txt

import bytelm
from bytelm.modalities.image_files.deep_png import deep_png

GREY = np.arange(60, dtype=np.uint16).reshape(6, 10) * 997
COLOUR = np.random.default_rng(0).integers(0, 1 << 16, (5, 7, 3), np.uint16)
SOUND = np.random.default_rng(1).integers(-(1 << 23), 1 << 23, (300, 2), np.int32)
VIEWS = ("data.views.image=deep", "data.views.audio=s24be")
CONFIG = """
model: {{preset: tiny, context: 1536}}
data: {{sets: [{{path: {set}}}]}}
train: {{steps: 2, eval_rows: 1}}
"""


@pytest.fixture(scope="module")
def deep_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of images of 8 and 16 bits, sounds of 16 and 24, and a text."""
    folder = tmp_path_factory.mktemp("deep")
    source = folder / "source"
    for split in ("train", "val"):
        txt(source / split / "a.txt")
        (source / split / "colour.png").write_bytes(deep_png(COLOUR))
        (source / split / "grey.png").write_bytes(deep_png(GREY[:, :, None]))
        PIL.Image.fromarray((GREY >> 8).astype(np.uint8)).save(source / split / "usual.png")
        soundfile.write(source / split / "deep.wav", SOUND << 8, 16_000, "PCM_24")
        soundfile.write(source / split / "usual.wav", SOUND >> 8, 16_000, "PCM_16")
    commands.bytelm("prepare", source, "--out", folder / "set", "--keep-depth")
    return folder / "set"


def test_sixteen_and_twenty_four_bits_come_back_as_they_were(
    deep_set: Path, tmp_path: Path
) -> None:
    commands.bytelm("inspect", deep_set, "--extract", "9", "--out", tmp_path / "files")
    images = sorted((tmp_path / "files").glob("*.png"))
    depths = sorted(path.read_bytes()[24] for path in images)
    assert depths == [8, 8, 16, 16, 16, 16]
    found = [np.asarray(PIL.Image.open(p)) for p in images if p.read_bytes()[24:26] == b"\x10\0"]
    assert all(np.array_equal(image, GREY) for image in found)
    written = {path.read_bytes() for path in images}
    assert deep_png(COLOUR) in written
    sounds = sorted((tmp_path / "files").glob("*.wav"))
    read = [soundfile.read(p, dtype="int32")[0] >> 8 for p in sounds]
    deep = [r for p, r in zip(sounds, read, strict=True) if soundfile.info(p).subtype == "PCM_24"]
    assert len(deep) == 2
    assert all(np.array_equal(sound, SOUND) for sound in deep)


def test_a_set_without_the_option_says_what_is_lost(deep_set: Path, tmp_path: Path) -> None:
    source = deep_set.parent / "source"
    shown = commands.bytelm("prepare", source, "--out", tmp_path / "set").stdout
    assert "16 bits kept as 8: 4 files" in shown
    assert "24 bits kept as 16: 2 files" in shown
    report = bytelm.open_set(tmp_path / "set").report
    assert report["documents"] == 10  # usual.png and usual.wav are a pair


@pytest.mark.parametrize(
    "views",
    [pytest.param((), id="usual views", marks=pytest.mark.long), pytest.param(VIEWS, id="deep")],
)
def test_deep_sets_train_generate_and_compress(
    deep_set: Path, tmp_path: Path, views: tuple[str, ...]
) -> None:
    config, run, out = tmp_path / "run.yaml", tmp_path / "run", tmp_path / "out"
    config.write_text(CONFIG.format(set=deep_set))
    sets = [word for view in views for word in ("--set", view)]
    commands.bytelm("train", config, "--out", run, *sets)
    commands.bytelm("evaluate", run, "--data", deep_set)
    commands.bytelm("generate", run, "--modality", "image", "--size", "4x3", "--out", out / "i")
    commands.bytelm("generate", run, "--modality", "audio", "--rate", "8000", "--seconds", "0.01",
               "--out", out / "a")  # fmt: skip
    [image], [sound] = (out / "i").rglob("*.png"), (out / "a").rglob("*.wav")
    assert image.read_bytes()[24] == (16 if views else 8)
    assert soundfile.info(sound).subtype == ("PCM_24" if views else "PCM_16")
    source = deep_set.parent / "source" / "train"
    commands.bytelm(
        "compress", run, source / "colour.png", source / "deep.wav", "--out", tmp_path / "c.blm"
    )
    commands.bytelm("decompress", run, tmp_path / "c.blm", "--out", tmp_path / "back")
    if views:
        restored = soundfile.read(tmp_path / "back" / "deep.wav", dtype="int32")[0] >> 8
        assert np.array_equal(restored, SOUND)
        assert (tmp_path / "back" / "colour.png").read_bytes() == deep_png(COLOUR)
    else:  # the usual views would lose bits, so the files stay as they are
        for name in ("colour.png", "deep.wav"):
            assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
