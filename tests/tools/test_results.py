"""The whole table: cells that are kept, kinds of files, archives, the page, and the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from helpers.sets import SetMaker, audio, image, text
from helpers.tiny_models import tiny_model
from rich.console import Console

from bytelm.modalities import MODALITIES
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.evaluation.codec_settings import BYTE_CODECS
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.tools.experiments import other_kinds
from bytelm.tools.experiments.other_kinds import (
    RECORDED,
    MadeKind,
    PackageKind,
    kind_set,
    recorded_kinds,
)
from bytelm.tools.experiments.package_files import DebianPackage, Wheel, package_files
from bytelm.tools.experiments.result_cells import Cells, CommandError
from bytelm.tools.experiments.result_tables import results_page
from bytelm.tools.experiments.results import SMALL, main
from bytelm.tools.experiments.set_archives import archive_sizes, missing_archivers

QUIET = Console(quiet=True)


def test_a_cell_is_made_once_and_one_that_failed_again(tmp_path: Path) -> None:
    made: list[int] = []

    def make(value: int) -> Iterator[dict[str, Any]]:
        made.append(value)
        if value < 0:
            raise CommandError("bytelm evaluate ended with status 1")
        yield {"name": "kinds/a", "value": value}

    def figures(value: int) -> list[dict[str, Any]]:
        cells = Cells(tmp_path / "cells", QUIET)
        found = cells.figures("kinds/a", [value], lambda: make(value))
        assert bool(cells.absent) == cells.has_failed == (value < 0)
        return found

    assert figures(1) == figures(1) == [{"name": "kinds/a", "value": 1}]
    assert figures(-1) == figures(-1) == []
    assert figures(2)[0]["value"] == 2, "made from something else"
    assert made == [1, -1, -1, 2]


def test_files_of_a_wheel_are_those_that_match(tmp_path: Path) -> None:
    wheel = Wheel("tales==1")
    folder = tmp_path / str(wheel).replace(" ", "-")
    folder.mkdir()
    with zipfile.ZipFile(folder / "tales-1-py3-none-any.whl", "w") as archive:
        for name in ("tales/b.py", "tales/data/a.py", "tales/a.png"):
            archive.writestr(name, name)
    found = package_files(wheel, ("tales/*.py",), tmp_path)
    assert found == [("tales/b.py", b"tales/b.py"), ("tales/data/a.py", b"tales/data/a.py")]
    with pytest.raises(ValueError, match=r"has no file .*\.wav"):
        package_files(wheel, ("*.wav",), tmp_path)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_files_of_a_debian_package_are_those_that_match(tmp_path: Path) -> None:
    package, tree = DebianPackage("tales"), tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: tales\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: x\n"
    (tree / "DEBIAN" / "control").write_text(control)
    (tree / "usr" / "share").mkdir(parents=True)
    (tree / "usr" / "share" / "a.json").write_bytes(b"[1]")
    (tree / "usr" / "share" / "b.json").symlink_to("a.json")
    folder = tmp_path / str(package).replace(" ", "-")
    folder.mkdir()
    build = ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(folder / "tales_1.deb")]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    assert package_files(package, ("*/share/*",), tmp_path) == [("usr/share/a.json", b"[1]")]


def test_a_package_that_cannot_be_had_is_a_value_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no apt-get on this machine"):
        DebianPackage("tales").download(tmp_path / "tales")
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    apt.chmod(0o755)
    with pytest.raises(ValueError, match=r"tales failed \(E: Unable to locate package\)"):
        DebianPackage("tales").download(tmp_path / "tales")
    assert not (tmp_path / "tales").exists()


def test_each_modality_has_three_recorded_kinds_and_more() -> None:
    for modality in MODALITIES:
        assert len([kind for kind in RECORDED if kind.modality == modality]) >= 5
    assert [kind.modality for kind in recorded_kinds(1)] == list(MODALITIES)
    assert len({kind.name for kind in RECORDED}) == len(RECORDED)


MADE = [kind for kind in RECORDED if isinstance(kind, MadeKind)]


@pytest.mark.parametrize("kind", MADE, ids=[kind.name for kind in MADE])
def test_made_files_are_the_same_each_time_and_become_a_set(kind: MadeKind, tmp_path: Path) -> None:
    files = list(kind.make())
    assert files == list(kind.make())
    shard_set = ShardSet(kind_set(kind, tmp_path, QUIET))
    assert shard_set.counts("val").bytes[kind.modality] > 0
    assert shard_set.counts("train").documents == 0
    assert shard_set.counts("val").documents == len(files)


def test_a_table_of_a_package_is_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a,b\n1,2\n"
    monkeypatch.setattr(other_kinds, "package_files", lambda *_: [("data/a.csv", content)])
    kind = PackageKind("csv", "text", Wheel("tales==1"), ("*.csv",))
    (shard,) = (shard_set := ShardSet(kind_set(kind, tmp_path, QUIET))).split("val")
    assert shard_set.sample(shard, shard_set.index(shard)[0]).data == content


def test_archives_are_smaller_than_single_files(make_set: SetMaker) -> None:
    line = b"the same line in each of the files, so that an archive saves the others\n"
    texts = [[text(line * 3 + b"%d" % number)] for number in range(9)]
    shard_set = make_set([[text(b"train")]], val=texts)
    sizes = archive_sizes(shard_set, "val")
    (xz,) = [codec for codec in BYTE_CODECS if codec.name == "xz"]
    alone = sum(xz.library(line * 3 + b"%d" % number) for number in range(9))
    assert sizes["xz, one archive"] < alone / 3
    assert ("zpaq -m5, one archive" in sizes) == (shutil.which("zpaq") is not None)


def test_archives_hold_images_and_sounds_as_files(make_set: SetMaker) -> None:
    for number, sample in enumerate((image(20, 15, 3), audio(400, 2))):
        shard_set = make_set([[sample]], f"set{number}", val=[[sample]])
        sizes = archive_sizes(shard_set, "val")
        assert min(sizes.values()) > len(sample.data) / 4, "noise does not compress"


def test_an_archiver_that_is_missing_is_named(
    make_set: SetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_archivers() == {"zpaq -m5": "apt install zpaq"}
    shard_set = make_set([[text(b"train")]], val=[[text(b"words " * 9)]])
    assert "zpaq -m5, one archive" not in archive_sizes(shard_set, "val")


def figure(name: str, value: float, reference: float | None = None, **details: Any) -> Any:
    ratio = value / reference if reference else None
    return {"name": name, "value": value, "reference": reference, "ratio": ratio, **details}


def test_the_page_has_a_table_of_each_part() -> None:
    details = {"bytes": 59_868, "best_codec": "PPMd"}
    figures = [
        figure("quality/text/modern", 1.76, 2.83, spread=0.008),
        figure("quality/text/mblm", 2.83, 2.83, spread=None),
        figure("val/text/text/mixed", 1.5, 2.0),
        figure("val/text/text/zpaq -m5, one archive", 1.8),
        *(
            figure(f"kinds/json/text/{column}", value, 0.8, **details)
            for column, value in (("network", 2.0), ("mixed", 0.7), ("xz", 0.9), ("PPMd", 0.8))
        ),
        figure("samples/image/500/drawn", 1.4, 1.3),
        figure("samples/image/500/taken for real", 0.3),
        figure("samples/text/500/drawn", 2.4, 2.3),
        figure("scaling/text/128x2", 2.1, 2.11, flops=5e12),
    ]
    page = results_page(figures, {"kinds/icons": "no apt-get on this machine"})
    assert "| modern | 1.760 ± 0.008 |\n| mblm | 2.830 |\n" in page
    assert "| mixed | 1.500 |\n| zpaq -m5, one archive | 1.800 |\n" in page
    row = "json | text | 59,868 | 2.000 | 0.700 | xz 0.900 | PPMd 0.800 | +150.0%, -12.5%"
    assert f"| {row} |\n" in page
    assert "| image | 500 | 1.400 | 1.300 | 30% |\n| text | 500 | 2.400 | 2.300 | - |\n" in page
    assert "| text | 128x2 | 5e+12 | 2.100 | 2.110 |\n" in page
    assert page.endswith("- no kinds/icons: no apt-get on this machine\n")
    assert "## Scaling" not in results_page(figures[:1], {})


def put_demo_model(work: Path) -> None:
    """Put tiny models where the command keeps the demo's, so that it trains none."""
    folder = work / "models" / f"demo-{SMALL.demo_steps}"
    for name, mixes in (("run", True), ("network", False)):
        model = tiny_model("two", context=512, codec_features=True, output_mixing=mixes)
        save_pretrained(model, model.config, folder / name, {"views": vars(ViewsConfig())})


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Folders of a few texts and images, divided into train and val."""
    rng = np.random.default_rng(0)
    for split, size, side in (("train", 9_000, 60), ("val", 300, 9)):
        (tmp_path / "letters" / split).mkdir(parents=True)
        letters = rng.integers(97, 123, size, "u1").tobytes()
        (tmp_path / "letters" / split / "a.txt").write_bytes(letters)
        (tmp_path / "dots" / split).mkdir(parents=True)
        pixels = rng.integers(0, 256, (side, side, 3), "u1")
        PIL.Image.fromarray(pixels).save(tmp_path / "dots" / split / "a.png")
    return [tmp_path / "letters", tmp_path / "dots"]


Command = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs the command in this process, and returns its figures."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*words: object, status: int = 0) -> list[dict[str, Any]]:
        work = ["--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", ["results", "--small", *work, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == status
        lines = [] if status else capsys.readouterr().out.splitlines()
        return [json.loads(line) for line in lines]

    return run


def test_the_command_scores_a_kind_of_ones_own_and_keeps_its_figures(
    tmp_path: Path, folders: list[Path], results: Command
) -> None:
    put_demo_model(tmp_path / "work")
    kind = folders[0] / "val"
    first = results("--only", "kinds", "--kind", kind)
    figures = {figure["name"]: figure for figure in first}
    names = ("network", "mixed", "adapted", "mixed, weights counted", "xz")
    assert {f"kinds/val/text/{name}" for name in names} <= set(figures)
    assert figures["kinds/val/text/network"]["bytes"] == 300
    page = (tmp_path / "work" / "results.md").read_text()
    assert "| val | text | 300 |" in page

    shutil.rmtree(tmp_path / "work" / "models")
    assert results("--only", "kinds", "--kind", kind) == first, "figures were made again"


@pytest.mark.long
def test_the_small_table_has_all_parts(
    tmp_path: Path, folders: list[Path], results: Command
) -> None:
    figures = results("--kind", folders[0] / "val", *folders)
    parts = {tuple(figure["name"].split("/")[:2]) for figure in figures}
    for part in ("quality", "scaling"):
        assert {(part, "text"), (part, "image")} <= parts
    assert {("val", "letters"), ("val", "dots"), ("kinds", "val")} <= parts
    assert {("samples", modality) for modality in MODALITIES} <= parts
    page = (tmp_path / "work" / "results.md").read_text()
    assert page.count("\n## ") + page.startswith("## ") == 5


def test_a_wrong_part_or_folder_is_one_line(
    tmp_path: Path, results: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--only", "sounds"], ["--kind", str(tmp_path / "gone")]):
        results(*words, status=2)
        assert words[1].split("/")[-1] in capsys.readouterr().err.splitlines()[-1]
