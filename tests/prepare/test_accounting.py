"""Every file of the sources is in the set or in the report, and the summary says so in words."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from helpers.mixed_folder import make_mixed_folder
from helpers.source_files import documents, png, txt

from bytelm.pipelines.prepare.documents import HARMLESS_REASONS
from bytelm.pipelines.prepare.prepare import Prepared, PrepareOptions, prepare, summary
from bytelm.pipelines.prepare.set_folder import SKIPPED_LIST


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, Prepared]:
    """A mixed folder, and the set in `set` beside it."""
    make_mixed_folder(tmp_path / "source")
    return tmp_path, prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions(workers=2))


def names_in(folder: Path) -> set[str]:
    """Names of all files that a walk shows, without hidden ones; links to folders among them."""
    names = set()
    for top, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        for name in (*files, *links):
            if not name.startswith("."):
                names.add((Path(top) / name).relative_to(folder).as_posix())
    return names


def container_of(name: str, containers: set[str]) -> str:
    """The tar or table that a member or row is of; the name itself of a file."""
    return next((c for c in containers if name.startswith(c)), name)


def test_every_file_is_in_the_set_or_in_the_report(mixed: tuple[Path, Prepared]) -> None:
    folder, prepared = mixed
    seen = names_in(folder / "source")
    containers = {name for name in seen if "/containers/" in name}
    segments = [s for parts in documents(folder / "set").values() for s in parts]
    used = {container_of(str(s["source"]), containers) for s in segments}
    skipped = {
        container_of(entry["name"], containers) for entry in prepared.report["skipped_files"]
    }
    assert used | skipped == seen
    assert used & skipped <= containers
    assert prepared.report["skipped_unnamed"] == 0


def test_the_reasons_are_true(mixed: tuple[Path, Prepared]) -> None:
    reasons = {e["name"].removeprefix("part 0/"): e for e in mixed[1].report["skipped_files"]}
    assert {name: reasons[name]["reason"] for name in sorted(reasons) if "damaged/" in name} == {
        "damaged/archive.zip": "unknown kind",
        "damaged/cut.flac": "truncated",
        "damaged/cut.png": "truncated",
        "damaged/empty.txt": "empty",
        "damaged/noise.dat": "unknown kind",
        "damaged/page.jpg": "name and content disagree",
        "damaged/paper.pdf": "unknown kind",
        "damaged/pipe": "unknown kind",
        "damaged/pointer.png": "git-lfs pointer",
        "damaged/program.txt": "unknown kind",
    }
    assert "PDF" in reasons["damaged/paper.pdf"]["detail"]
    assert "HTML" in reasons["damaged/page.jpg"]["detail"]
    assert reasons["texts/__pycache__/foo.cpython-311.pyc"]["reason"] in HARMLESS_REASONS
    assert reasons["containers/cut.tar"]["reason"] == "damaged tar"
    assert reasons["containers/packed.tar.gz"]["size"] > 0
    others = {"damaged/", "containers/", "links/", "texts/__pycache__", "texts/Thumbs.db"}
    rest = [n for n in reasons if not any(n.startswith(other) for other in others)]
    assert {reasons[name]["reason"] for name in rest} <= set(HARMLESS_REASONS)


def test_the_summary_says_what_was_taken_and_what_was_left_out(
    mixed: tuple[Path, Prepared],
) -> None:
    folder, prepared = mixed
    lines = summary(prepared, folder / "set").splitlines()
    text = next(line for line in lines if line.startswith("  text: "))
    assert ".txt" in text
    assert "caption" in text
    assert any(line.startswith("  pairs: ") and "text + image" in line for line in lines)
    assert any(line.startswith("  converted from UTF-16: 1 file (") for line in lines)
    assert any("name and content disagree (part 0/damaged/page.jpg)" in line for line in lines)
    assert any(line.startswith("  lost: ") for line in lines)
    summary(prepared, folder / "set").encode()  # names that are no UTF-8 are escaped


def test_counts_of_the_report_agree_with_the_set(mixed: tuple[Path, Prepared]) -> None:
    folder, prepared = mixed
    report = prepared.report
    found = documents(folder / "set")
    assert report["documents"] == len(found)
    pairs = Counter(
        " + ".join(dict.fromkeys(str(s["modality"]) for s in parts))
        for parts in found.values()
        if len(parts) > 1
    )
    assert report["pairs"] == pairs
    kinds = Counter(str(s["modality"]) for parts in found.values() for s in parts)
    assert {m: sum(t["kinds"].values()) for m, t in report["taken"].items()} == kinds


def test_one_document_is_singular_and_empty_splits_are_named(tmp_path: Path) -> None:
    txt(tmp_path / "source" / "a.txt", "a text")
    lines = summary(
        prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions()), tmp_path / "set"
    ).splitlines()
    assert ": 1 document from 1 file, root " in lines[0]
    assert lines[1] == "  train: 1 document, 6 bytes text"
    assert lines[2].startswith("  val and test: empty")
    assert len(lines) == 4


def test_a_long_list_of_skipped_files_has_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytelm.pipelines.prepare.report.MAX_NAMED", 3)
    for i in range(9):
        txt(tmp_path / "source" / f"{i}.txt", "" if i < 5 else "a text")
    options = PrepareOptions(max_bad_share=0.6)
    prepared = prepare([tmp_path / "source"], tmp_path / "set", options)
    assert [e["name"] for e in prepared.report["skipped_files"]] == ["0.txt", "1.txt", "2.txt"]
    assert prepared.report["skipped_unnamed"] == 2
    assert prepared.report["skipped"] == {"empty": 5}
    lines = (tmp_path / "set" / SKIPPED_LIST).read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [f"{i}.txt" for i in range(5)]
    assert SKIPPED_LIST in summary(prepared, tmp_path / "set")
    assert not prepare([tmp_path / "source"], tmp_path / "set", options).made


def test_a_loss_weighs_its_bytes(tmp_path: Path) -> None:
    for i in range(9):
        txt(tmp_path / "source" / f"{i}.txt", "a text" * 100)
    png(tmp_path / "source" / "large.png", 200, 200)
    data = (tmp_path / "source" / "large.png").read_bytes()
    txt(tmp_path / "source" / "large.png", data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"bytes \(9\d\.\d%\) are bad.* 1 \w+ \(large.png\)"):
        prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions())
    prepared = prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions(max_bad_share=1))
    assert prepared.report["lost"]["files"] == {"lost": 1, "total": 10}


def test_captions_that_fit_no_file_are_lost_pairs(tmp_path: Path) -> None:
    for i in range(4):
        png(tmp_path / "source" / f"{i}.png", seed=i)
    captions = {f"elsewhere/{i}.png": "a picture" for i in range(4)}
    txt(tmp_path / "captions.json", json.dumps(captions))
    options = PrepareOptions(captions=tmp_path / "captions.json")
    with pytest.raises(ValueError, match=r"4 of 4 pairs .* caption without a file \(elsewhere/0"):
        prepare([tmp_path / "source"], tmp_path / "set", options)


def test_pairs_of_which_a_part_is_bad_are_lost_pairs(tmp_path: Path) -> None:
    for i in range(10):
        png(tmp_path / "source" / f"{i}.png", seed=i)
        txt(tmp_path / "source" / f"{i}.txt", b"binary \0" if i < 6 else b"a picture")
    with pytest.raises(ValueError, match="6 of 10 pairs"):
        prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions())
