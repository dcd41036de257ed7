"""prepare: which split a document is in, by names and in small sets."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from helpers.source_files import documents, txt
from test_webdataset_tars import write_tar

from bytelm.pipelines.prepare.documents import make_key, split_of
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.prepare.splits import (
    divide_folder,
    fill_empty_splits,
    split_of_file_name,
    split_of_folder,
)

SHARES = (0.9, 0.05, 0.05)


def write_texts(folder: Path, count: int = 10) -> None:
    """Write texts whose content is the folder's name and a number."""
    for i in range(count):
        txt(folder / f"{i}.txt", f"{folder.name} {i}")


def splits_of(out: Path) -> dict[str, set[str]]:
    """The first word of the texts of each split."""
    found: dict[str, set[str]] = {}
    for segments in documents(out).values():
        word = bytes(segments[0]["data"]).split()[0].decode()  # type: ignore[call-overload]
        found.setdefault(str(segments[0]["split"]), set()).add(word)
    return found


@pytest.mark.parametrize("train", ["train", "Train", "training", "train2017", "train-clean-100"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "VAL", "dev-clean"])
def test_folders_of_a_source_are_its_splits(tmp_path: Path, train: str, val: str) -> None:
    for name in (train, val, "test"):
        write_texts(tmp_path / "src" / name)
    report = prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions()).report
    assert {s: c["documents"] for s, c in report["splits"].items()} == dict.fromkeys(
        ("train", "val", "test"), 10
    )
    assert splits_of(tmp_path / "set") == {"train": {train}, "val": {val}, "test": {"test"}}


def test_folders_below_others_are_splits_where_train_has_a_counterpart(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for name in ("images/train", "images/val", "data/x/training/cats", "data/x/dev/cats"):
        write_texts(src / name, 20)
    write_texts(src / "code" / "test", 30)
    write_texts(src / "lib" / "train", 30)
    prepare([src], tmp_path / "set", PrepareOptions())
    by_folder: dict[str, set[str]] = {}
    for segments in documents(tmp_path / "set").values():
        folder = str(segments[0]["source"]).rpartition("/")[0]
        by_folder.setdefault(folder, set()).add(str(segments[0]["split"]))
    assert by_folder["images/train"] == by_folder["data/x/training/cats"] == {"train"}
    assert by_folder["images/val"] == by_folder["data/x/dev/cats"] == {"val"}
    assert "train" in by_folder["code/test"]
    assert len(by_folder["lib/train"]) > 1


def test_what_lies_outside_of_split_folders_is_train(tmp_path: Path) -> None:
    for name in ("train", "val", "other"):
        write_texts(tmp_path / "src" / name, 40)
    txt(tmp_path / "src" / "README.md", "README")
    prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions())
    assert splits_of(tmp_path / "set") == {"train": {"train", "other", "README"}, "val": {"val"}}


def test_a_folder_train_alone_leaves_the_rest_to_the_hash(tmp_path: Path) -> None:
    write_texts(tmp_path / "src" / "train", 40)
    write_texts(tmp_path / "src" / "other", 60)
    prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions())
    found = splits_of(tmp_path / "set")
    assert found["train"] == {"train", "other"}
    assert found["val"] == found["test"] == {"other"}


def test_sources_that_are_split_folders_stay_apart(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_texts(tmp_path / "data" / name)
    sources = [tmp_path / "data" / "train", tmp_path / "data" / "val"]
    prepare(sources, tmp_path / "set", PrepareOptions())
    expected = {"train": {"train"}, "val": {"val"}}
    assert splits_of(tmp_path / "set") == expected
    files = [path for source in sources for path in sorted(source.iterdir())]
    prepare(files, tmp_path / "files", PrepareOptions())
    assert splits_of(tmp_path / "files") == expected
    assert set(documents(tmp_path / "set")) == set(documents(tmp_path / "files"))


def test_one_source_is_divided_by_hash_whatever_its_own_name(tmp_path: Path) -> None:
    write_texts(tmp_path / "test", 60)
    report = prepare([tmp_path / "test"], tmp_path / "set", PrepareOptions()).report
    keys = [hashlib.sha256(str(i).encode()).digest() for i in range(60)]
    expected = Counter(split_of(key, SHARES) for key in keys)
    assert {s: c["documents"] for s, c in report["splits"].items()} == expected


def test_tars_of_one_folder_are_split_by_their_names(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "digits-validation", "x_test_0"):
        members = {f"{i}.txt": f"{name} {i}".encode() for i in range(5)}
        write_tar(tmp_path / "src" / f"{name}.tar", members)
    prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions())
    assert splits_of(tmp_path / "set") == {
        "train": {"train-00000-of-00002", "train-00001-of-00002"},
        "val": {"digits-validation"},
        "test": {"x_test_0"},
    }


def test_words_of_names_say_splits() -> None:
    assert split_of_file_name("validation-00000-of-00004.parquet") == "val"
    assert split_of_file_name("data/en.DEV.jsonl") == "val"
    assert split_of_file_name("contest.csv") is None
    assert split_of_file_name("train-test-split.csv") is None
    assert split_of_folder("digits_test") == "test"
    assert split_of_folder("testimony") is None
    assert split_of_folder("my test set") is None
    assert divide_folder(["src", "test", "docs"], is_source=True) == {}
    assert divide_folder(["train", "src"], is_source=True) == {"train": "train"}
    assert divide_folder(["train", "src"], is_source=False) == {}
    assert divide_folder(["train", "eval"], is_source=False) == {"train": "train", "eval": "test"}


# --- small sets ---


@pytest.mark.parametrize("count", [3, 4, 10, 25])
def test_every_split_of_a_small_set_has_a_document(tmp_path: Path, count: int) -> None:
    write_texts(tmp_path / "src", count)
    report = prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions()).report
    counts = {s: c["documents"] for s, c in report["splits"].items()}
    assert set(counts) == {"train", "val", "test"}
    assert sum(counts.values()) == count
    assert counts["train"] == max(counts.values())


@pytest.mark.parametrize("name", ["t13", "t0", "t1"])
def test_one_document_is_train(tmp_path: Path, name: str) -> None:
    txt(tmp_path / "src" / f"{name}.txt", "one text")
    report = prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions()).report
    assert list(report["splits"]) == ["train"]
    assert split_of(hashlib.sha256(b"t13").digest(), SHARES) == "test"


def test_splits_that_names_decide_are_not_touched(tmp_path: Path) -> None:
    write_texts(tmp_path / "src" / "train", 10)
    write_texts(tmp_path / "src" / "val", 1)
    report = prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions()).report
    assert list(report["splits"]) == ["train", "val"]


def test_documents_are_moved_by_their_hash_and_not_by_their_order() -> None:
    digests = [hashlib.sha256(b"%d" % i).digest() for i in range(12)]
    splits = ["train"] * 12
    moved = dict(zip(digests, fill_empty_splits(digests, splits, SHARES, Counter()), strict=True))
    assert Counter(moved.values()) == {"train": 10, "val": 1, "test": 1}
    again = fill_empty_splits(digests[::-1], splits, SHARES, Counter())
    assert dict(zip(digests[::-1], again, strict=True)) == moved
    assert fill_empty_splits(digests, splits, (1.0, 0.0, 0.0), Counter()) == splits
    assert fill_empty_splits(digests, splits, SHARES, Counter(val=1, test=2)) == splits
    few = fill_empty_splits(digests[:1], ["val"], SHARES, Counter(train=5))
    assert few == ["val"]


def test_large_sets_are_divided_by_the_hash_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "src", 200)
    prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions())
    for key, segments in documents(tmp_path / "set").items():
        digest = hashlib.sha256(make_key(key).encode()).digest()
        assert segments[0]["split"] == split_of(digest, SHARES)
