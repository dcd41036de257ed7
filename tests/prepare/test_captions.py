"""Which of several captions of an image or a sound counts, in folders and in tars."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from helpers.source_files import documents, png, skipped, txt

from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare


def texts_by_key(folder: Path) -> dict[str, list[object]]:
    """The texts of each document."""
    return {
        key: [s["data"] for s in segments if s["modality"] == "text"]
        for key, segments in documents(folder).items()
    }


def test_the_captions_file_replaces_the_caption_files_beside(tmp_path: Path) -> None:
    for stem in "ab":
        png(tmp_path / "src" / f"{stem}.png")
        txt(tmp_path / "src" / f"{stem}.txt", f"beside {stem}")
    txt(tmp_path / "captions.json", json.dumps({"a.png": "given a"}))
    options = PrepareOptions(captions=tmp_path / "captions.json")
    prepared = prepare([tmp_path / "src"], tmp_path / "set", options)
    assert texts_by_key(tmp_path / "set") == {"a": [b"given a"], "b": [b"beside b"]}
    assert skipped(prepared) == {"a.txt": "metadata"}


@pytest.mark.parametrize("suffix", [".TXT", ".Caption"])
def test_a_caption_file_in_capitals_counts_before_a_table(tmp_path: Path, suffix: str) -> None:
    png(tmp_path / "src" / "a.png")
    txt(tmp_path / "src" / f"a{suffix}", "beside")
    txt(tmp_path / "src" / "metadata.csv", "file_name,text\na.png,of the table\n")
    prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions())
    assert texts_by_key(tmp_path / "set") == {"a": [b"beside"]}


@pytest.mark.parametrize("is_tar", [False, True])
def test_a_caption_in_json_counts_before_the_number_of_a_class(
    tmp_path: Path, is_tar: bool
) -> None:
    png(tmp_path / "a.png")
    image = (tmp_path / "a.png").read_bytes()
    files = {
        "0.png": image,
        "0.cls": b"7",
        "0.json": b'{"caption": "a red boat"}',
        "1.cls": b"8",
        "1.json": b'{"caption": "a cat"}',
        "1.png": image,
        "2.png": image,
        "2.cls": b"9",
        "2.json": b'{"label": 9}',
        "3.png": image,
        "3.md": b"notes",
        "3.json": b'{"caption": "a dog"}',
    }
    source = tmp_path / "src"
    for name, data in files.items():
        txt(source / name, data)
    if is_tar:
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            for name in files:
                tar.add(source / name, name)
        source = tmp_path / "t.tar"
    prepared = prepare([source], tmp_path / "set", PrepareOptions())
    texts = texts_by_key(tmp_path / "set").values()
    assert sorted(texts, key=repr) == [[b"9"], [b"a cat"], [b"a dog"], [b"a red boat"], [b"notes"]]
    reasons = {Path(name).name: reason for name, reason in skipped(prepared).items()}
    with_captions = set() if is_tar else {"0.json", "1.json", "3.json"}
    assert set(reasons) == {"0.cls", "1.cls", "2.json"} | with_captions
    assert set(reasons.values()) == {"metadata"}
