"""prepare: no document is lost by its name, and a file that is reached twice is one document."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.source_files import documents, hashes, png, skipped, sound, txt
from helpers.web_server import be_impatient, serving
from test_webdataset_tars import write_tar

from bytelm.pipelines.prepare.documents import (
    BOOKKEEPING,
    EXCLUDED,
    KEY_MAX,
    SAME_FILE,
    make_key,
)
from bytelm.pipelines.prepare.keys import KeyCandidate, unique_keys
from bytelm.pipelines.prepare.prepare import Prepared, PrepareOptions, prepare, summary


def contents(out: Path) -> dict[str, bytes]:
    """The text of each document of one segment, by key."""
    return {k: bytes(s[0]["data"]) for k, s in documents(out).items()}  # type: ignore[arg-type]


def texts_of(out: Path) -> list[bytes]:
    """The texts of all documents, sorted."""
    return sorted(contents(out).values())


def parts_of(out: Path) -> set[tuple[object, ...]]:
    """The names of the files of each document."""
    return {tuple(s["source"] for s in segments) for segments in documents(out).values()}


def prepare_here(tmp_path: Path, *sources: str, **options: object) -> Prepared:
    """Make a set of folders of `tmp_path`, in a folder `set`."""
    paths = [tmp_path / source for source in sources]
    return prepare(paths, tmp_path / "set", PrepareOptions(**options))  # type: ignore[arg-type]


# --- names ---


def test_files_of_one_stem_and_modality_are_documents_of_their_own(tmp_path: Path) -> None:
    names = ["foo.c", "foo.h", "bar.c", "bar.h", "main.c", "README", "README.md", "index.html"]
    for name in [*names, "index.js"]:
        txt(tmp_path / "src" / name, f"content of {name}\n")
    prepared = prepare_here(tmp_path, "src")
    assert skipped(prepared) == {}
    assert contents(tmp_path / "set") == {
        ("main" if name == "main.c" else make_key(name)): f"content of {name}\n".encode()
        for name in [*names, "index.js"]
    }


def test_a_caption_file_goes_with_the_image_where_there_are_more_texts(tmp_path: Path) -> None:
    src = tmp_path / "src"
    png(src / "cat.png")
    for name in ("cat.txt", "cat.md", "dog.caption", "dog.py", "fox.md", "fox.rst"):
        txt(src / name, name)
    png(src / "dog.png", seed=1)
    png(src / "fox.png", seed=2)
    sound(src / "dog.flac")
    png(src / "two.png", seed=3)
    png(src / "two.jpg", seed=4)
    txt(src / "two.txt", "of which?")
    prepared = prepare_here(tmp_path, "src")
    assert skipped(prepared) == {}
    assert parts_of(tmp_path / "set") == {
        ("cat.txt", "cat.png"),
        ("cat.md",),
        ("dog.caption", "dog.png", "dog.flac"),
        ("dog.py",),
        *((name,) for name in ("fox.md", "fox.rst", "fox.png")),
        *((name,) for name in ("two.txt", "two.png", "two.jpg")),
    }


@pytest.mark.parametrize("order", [("cc3m", "cc12m"), ("cc12m", "cc3m")])
def test_sources_that_are_numbered_alike_keep_all_documents(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    for source in order:
        for i in range(5):
            txt(tmp_path / source / f"{i:09d}.txt", f"{source} {i}")
    txt(tmp_path / "cc3m" / "only.txt", "only here")
    prepared = prepare_here(tmp_path, *order)
    assert skipped(prepared) == {}
    expected = {make_key(f"{s}/{i:09d}.txt"): f"{s} {i}".encode() for s in order for i in range(5)}
    assert contents(tmp_path / "set") == {**expected, "only": b"only here"}


def test_sources_of_one_name_are_told_apart_by_the_folders_above(tmp_path: Path) -> None:
    for source in ("a/data", "b/data"):
        txt(tmp_path / source / "0.txt", source)
    write_tar(tmp_path / "a" / "0.tar", {"x.txt": b"a"})
    write_tar(tmp_path / "b" / "0.tar", {"x.txt": b"b"})
    prepared = prepare_here(tmp_path, "a/data", "b/data", "a/0.tar", "b/0.tar")
    assert skipped(prepared) == {}
    assert set(contents(tmp_path / "set")) == {
        make_key("a/data/0.txt"),
        make_key("b/data/0.txt"),
        make_key("a/0.tar/x.txt"),
        make_key("b/0.tar/x.txt"),
    }


def test_a_member_of_a_tar_and_a_file_are_no_pair(tmp_path: Path) -> None:
    txt(tmp_path / "src" / "a" / "x.txt", "a file")
    png(tmp_path / "x.png")
    write_tar(tmp_path / "src" / "a.tar", {"x.png": (tmp_path / "x.png").read_bytes()})
    prepare_here(tmp_path, "src")
    assert parts_of(tmp_path / "set") == {("a/x.txt",), ("a.tar/x.png",)}


def test_keys_are_unique_however_alike_the_documents_are() -> None:
    place = ("data",)
    alike = [KeyCandidate("a.txt", place, offset, 0) for offset in (512, 1536, None)]
    other = KeyCandidate("b.txt", ("other",), None, 1)
    taken = {make_key("b.txt")}
    keys = unique_keys([*alike, other], taken)
    assert len({*keys, make_key("b.txt")}) == 5
    assert taken == {*keys, make_key("b.txt")}
    assert keys[3] == make_key("other/b.txt")
    assert all(len(key) <= KEY_MAX for key in keys)
    assert unique_keys([other, *alike[::-1]], {make_key("b.txt")}) == [keys[3], *keys[2::-1]]


def test_names_of_255_bytes_and_with_brackets_are_documents(tmp_path: Path) -> None:
    long = "\u3042" * 83 + ".txt"
    odd = os.fsdecode(b"\xff\xfd.txt")
    names = [long, "a[1].txt", "a{0..2}.txt", "a*.txt", odd]
    for name in names:
        with open(os.fsencode(tmp_path / name), "wb") as file:
            file.write(b"named " + os.fsencode(name))
    write_tar(tmp_path / "t{0..1}[a].tar", {"[x].txt": b"in a tar"})
    prepared = prepare_here(tmp_path, *names, "t{0..1}[a].tar")
    assert skipped(prepared) == {}
    assert texts_of(tmp_path / "set") == sorted(
        [*(b"named " + os.fsencode(name) for name in names), b"in a tar"]
    )


def test_a_pattern_that_the_shell_left_names_files(tmp_path: Path) -> None:
    for name in ("a1.txt", "a2.txt", "b.txt"):
        txt(tmp_path / name, name)
    prepare_here(tmp_path, "a*.txt")
    assert texts_of(tmp_path / "set") == [b"a1.txt", b"a2.txt"]
    with pytest.raises(ValueError, match=r"no such source: .*c\*.txt"):
        prepare([tmp_path / "c*.txt"], tmp_path / "none", PrepareOptions())


# --- one file, several names ---


def test_a_hugging_face_cache_has_each_file_once(tmp_path: Path) -> None:
    src = tmp_path / "src"
    txt(src / "refs" / "main", "abc")
    (src / "snapshots" / "abc").mkdir(parents=True)
    for i in range(10):
        txt(src / "blobs" / f"{i:064x}", f"document {i}\n")
        (src / "snapshots" / "abc" / f"{i}.txt").symlink_to(f"../../blobs/{i:064x}")
    txt(src / "blobs" / f"{10:064x}", "of no snapshot")
    txt(src / "blobs" / f"{11:064x}.incomplete", "of no snapshot")
    prepared = prepare_here(tmp_path, "src")
    assert prepared.report["documents"] == 10
    assert parts_of(tmp_path / "set") == {(f"snapshots/abc/{i}.txt",) for i in range(10)}
    assert prepared.report["skipped"] == {BOOKKEEPING: 3, SAME_FILE: 10}
    assert prepared.report["files"] == 23


def test_a_folder_of_caches_has_no_texts_of_its_own(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    txt(hub / "version.txt", "1")
    for name in ("datasets--a--b", "models--c--d"):
        txt(hub / name / "refs" / "main", "abc")
        txt(hub / name / "snapshots" / "abc" / "data.txt", name)
    prepared = prepare_here(tmp_path, "hub")
    assert texts_of(tmp_path / "set") == [b"datasets--a--b", b"models--c--d"]
    assert prepared.report["skipped"] == {BOOKKEEPING: 3}


def test_folders_named_blobs_and_refs_are_sources_as_any(tmp_path: Path) -> None:
    for folder in ("blobs", "refs", "snapshot"):
        txt(tmp_path / "src" / folder / "a.txt", folder)
    prepare_here(tmp_path, "src")
    assert texts_of(tmp_path / "set") == [b"blobs", b"refs", b"snapshot"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_links_to_a_file_are_the_same_file(tmp_path: Path, link: object) -> None:
    src = tmp_path / "src"
    txt(src / "train" / "b.txt", "b")
    txt(src / "val" / "c.txt", "c")
    link(src / "train" / "b.txt", src / "val" / "b.txt")  # type: ignore[operator]
    link(src / "train" / "b.txt", src / "without_suffix")  # type: ignore[operator]
    prepared = prepare_here(tmp_path, "src")
    assert prepared.report["skipped"] == {SAME_FILE: 2}
    assert texts_of(tmp_path / "set") == [b"b", b"c"]
    (entry, _) = prepared.report["skipped_files"]
    assert entry["detail"] == "the same file as train/b.txt"


def test_a_link_to_a_folder_of_the_source_loses_nothing(tmp_path: Path) -> None:
    src = tmp_path / "src"
    txt(src / "a" / "x.txt")
    txt(src / ".hidden" / "y.txt")
    txt(tmp_path / "outside" / "z.txt")
    (src / "b").symlink_to("a")
    (src / "c").symlink_to(".hidden")
    (src / "d").symlink_to(tmp_path / "outside")
    (src / "e").symlink_to(src)
    prepared = prepare_here(tmp_path, "src", max_bad_share=1.0)
    assert skipped(prepared) == {"b": SAME_FILE, "c": "link", "d": "link", "e": SAME_FILE}
    assert prepared.report["documents"] == 1
    assert prepared.report["files"] == 5


def test_overlapping_sources_have_each_file_once_in_any_order(tmp_path: Path) -> None:
    for i in range(8):
        txt(tmp_path / "data" / "part" / f"{i}.txt", f"text {i}")
    write_tar(tmp_path / "data" / "t.tar", {"a.txt": b"in a tar"})
    sources = [tmp_path / "data", tmp_path / "data" / "part", tmp_path / "data" / "t.tar"]
    first = prepare(sources, tmp_path / "first", PrepareOptions())
    prepare(sources[::-1], tmp_path / "second", PrepareOptions())
    assert first.report["documents"] == 9
    assert first.report["skipped"] == {SAME_FILE: 9}
    tars = [{n: h for n, h in hashes(tmp_path / f).items() if n.endswith(".tar")}
            for f in ("first", "second")]  # fmt: skip
    assert tars[0] == tars[1]
    assert len(first.report["splits"]) == 3


def test_equal_content_in_two_files_is_two_documents(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        txt(tmp_path / "src" / name, "equal")
    assert prepare_here(tmp_path, "src").report["documents"] == 2


# --- patterns ---


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        ([], ["*.json"], ["README.md", "a/x.txt", "a/b/y.txt", "docs/z.md"]),
        (["*.txt"], [], ["a/x.txt", "a/b/y.txt"]),
        (["*.txt"], ["a/b"], ["a/x.txt"]),
        (["docs/"], [], ["docs/z.md", "docs/c.json"]),
        (["**/*.md"], [], ["README.md", "docs/z.md"]),
        (["a/**/y.txt", "./README.md"], [], ["README.md", "a/b/y.txt"]),
        (["a/?.txt", "z.*"], [], ["a/x.txt", "docs/z.md"]),
        (["[a-r]*"], ["b"], ["a/x.txt", "docs/z.md", "a/c.json", "docs/c.json"]),
        (["*.TXT", "docs/c.json"], [], ["docs/c.json"]),
    ],
)
def test_patterns_choose_files_by_name(
    tmp_path: Path, include: list[str], exclude: list[str], kept: list[str]
) -> None:
    names = ["README.md", "a/x.txt", "a/b/y.txt", "docs/z.md", "a/c.json", "docs/c.json"]
    for name in names:
        txt(tmp_path / "src" / name, name)
    prepared = prepare_here(tmp_path, "src", include=tuple(include), exclude=tuple(exclude))
    assert texts_of(tmp_path / "set") == sorted(name.encode() for name in kept)
    assert prepared.report["skipped"] == {EXCLUDED: len(names) - len(kept)}


def test_what_patterns_leave_out_is_named_by_pattern_and_harmless(tmp_path: Path) -> None:
    for i in range(9):
        txt(tmp_path / "src" / f"{i}.log", "no training text")
    txt(tmp_path / "src" / "a.txt")
    prepared = prepare_here(tmp_path, "src", exclude=("*.log", "b"), max_bad_share=0.0)
    entries = prepared.report["skipped_files"]
    assert [entry["count"] for entry in entries] == [1, 1, 1, 6]
    assert entries[0]["detail"] == "matches --exclude *.log"
    assert entries[3]["detail"] == "matches --exclude *.log, with 5 others"
    assert "skipped: 9 excluded (0.log, 1.log, 2.log, ...)" in summary(prepared, tmp_path / "set")


def test_patterns_apply_to_the_members_of_tars(tmp_path: Path) -> None:
    members = {f"{folder}/{i}.txt": b"%d" % i for folder in ("a", "b") for i in range(3)}
    write_tar(tmp_path / "src" / "one.tar", members)
    write_tar(tmp_path / "src" / "two.tar", {"a/9.txt": b"9", "a/9.md": b"10"})
    options = PrepareOptions(include=("*.txt",), exclude=("one.tar/b", "two.tar/a/8*"))
    prepare([tmp_path / "src"], tmp_path / "set", options)
    assert texts_of(tmp_path / "set") == [b"0", b"1", b"2", b"9"]
    prepare([tmp_path / "src"], tmp_path / "tar", PrepareOptions(include=("two.tar",)))
    assert texts_of(tmp_path / "tar") == [b"10", b"9"]


def test_patterns_are_part_of_the_input(tmp_path: Path) -> None:
    for name in ("a.txt", "b.log"):
        txt(tmp_path / "src" / name)
    prepare_here(tmp_path, "src")
    with pytest.raises(ValueError, match="made of other files or options"):
        prepare_here(tmp_path, "src", exclude=("*.log",))
    with pytest.raises(ValueError, match="the pattern '/' is empty"):
        prepare_here(tmp_path, "src", include=("/",))


# --- at URLs ---


def test_tars_at_urls_keep_their_splits_and_all_their_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_impatient(monkeypatch)
    with serving() as web:
        base = web.url.removesuffix("/set")
        for split in ("train", "val"):
            members = {f"{i:09d}.txt": f"{split} {i}".encode() for i in range(4)}
            tar = write_tar(tmp_path / "www" / split / "00000.tar", members)
            web.objects[f"/{split}/00000.tar"] = tar.read_bytes()
        urls = [f"{base}/{split}/00000.tar" for split in ("train", "val")]
        remote = prepare(urls, tmp_path / "remote", PrepareOptions())
        pattern = f"{base}/{{train,val}}/00000.tar"
        assert prepare([pattern], tmp_path / "pattern", PrepareOptions()).root == remote.root
    local = [tmp_path / "www" / split / "00000.tar" for split in ("train", "val")]
    for report in (remote.report, prepare(local, tmp_path / "local", PrepareOptions()).report):
        assert {s: c["documents"] for s, c in report["splits"].items()} == {"train": 4, "val": 4}
        assert report["skipped"] == {}


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("https://127.0.0.1:1/data/*.tar", "a web server does not list its files"),
        ("memory://nothing/here/*.tar", "no tar or table matches"),
        ("https://127.0.0.1:1/photo.png", "is no tar and no table"),
        ("memory://nothing/here/", "no tar or table matches"),
    ],
)
def test_a_url_that_names_nothing_is_one_line(tmp_path: Path, url: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause) as raised:
        prepare([url], tmp_path / "set", PrepareOptions())
    assert "\n" not in str(raised.value)


def test_patterns_and_folders_at_stores_that_list_them(tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for split in ("train", "validation"):
        tar = write_tar(tmp_path / f"{split}.tar", {"a.txt": split.encode()})
        store.pipe(f"/listed/{split}/0.tar", tar.read_bytes())
    store.pipe("/listed/README.md", b"no tar")
    for i, url in enumerate(("memory://listed/", "memory://listed/*/*.tar")):
        report = prepare([url], tmp_path / str(i), PrepareOptions()).report
        assert {s: c["documents"] for s, c in report["splits"].items()} == {"train": 1, "val": 1}
