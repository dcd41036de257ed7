"""prepare: which documents are made of files, which files are skipped, and why."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
import pytest
import soundfile
from helpers.commands import bytelm
from helpers.source_files import documents, png, skipped, small_source, sound, txt
from rich.console import Console

from bytelm.modalities.base import DecodeOptions, Limits
from bytelm.pipelines.prepare.documents import KEY_MAX, make_key, split_of
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare, summary
from bytelm.pipelines.prepare.prepare_state import PREPARE_STATE
from bytelm.pipelines.shards.format import SET_MANIFEST
from bytelm.pipelines.shards.reader import ShardSet

ALL_TRAIN = (1.0, 0.0, 0.0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_source(tmp_path / "source")


# --- documents ---


def test_payloads_are_what_pillow_and_soundfile_decode(tmp_path: Path, source: Path) -> None:
    prepare([source], tmp_path / "set", PrepareOptions())
    found = [s for segments in documents(tmp_path / "set").values() for s in segments]
    assert len(found) == 50
    for segment in found:
        path = source / str(segment["source"])
        if segment["modality"] == "image":
            with PIL.Image.open(path) as image:
                assert (segment["width"], segment["height"]) == image.size
                expected = np.asarray(image.convert("RGB")).tobytes()
        elif segment["modality"] == "audio":
            expected = soundfile.read(path, dtype="int16")[0].tobytes()
        else:
            expected = path.read_bytes()
        assert segment["data"] == expected


def test_files_of_one_stem_are_one_document(tmp_path: Path) -> None:
    source = tmp_path / "source"
    png(source / "cat.png")
    txt(source / "cat.txt", "a cat")
    sound(source / "cat.flac")
    txt(source / "sub" / "cat.txt", "another folder")
    prepared = prepare([source], tmp_path / "set", PrepareOptions())
    found = documents(tmp_path / "set")
    assert [s["modality"] for s in found["cat"]] == ["text", "image", "audio"]
    assert [s["source"] for s in found["cat"]] == ["cat.txt", "cat.png", "cat.flac"]
    assert prepared.report["documents"] == 2
    assert prepared.report["files"] == 4


def test_captions_come_before_their_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    png(source / "a" / "cat.png")
    png(source / "dog.png")
    captions = source / "captions.json"
    txt(captions, json.dumps({"a/cat.png": "eine Katze über allem", "fox.png": "no such fox"}))
    prepared = prepare([source], tmp_path / "set", PrepareOptions(captions=captions))
    found = documents(tmp_path / "set")
    assert set(found) == {make_key("a/cat"), "dog"}
    caption, cat = found[make_key("a/cat")]
    assert caption["data"] == "eine Katze über allem".encode()
    assert cat["modality"] == "image"
    assert skipped(prepared) == {"fox.png": "caption without a file"}

    outside = tmp_path / "outside.json"
    txt(outside, json.dumps({"source/dog.png": "a dog"}))
    prepare([source / "dog.png"], tmp_path / "other", PrepareOptions(captions=outside))
    assert documents(tmp_path / "other")["dog"][0]["data"] == b"a dog"


@pytest.mark.parametrize("content", ["nonsense", "[1]", '{"a": 1}', '{"a": "\\ud800"}'])
def test_a_captions_file_that_is_none_is_an_error(tmp_path: Path, content: str) -> None:
    txt(tmp_path / "a.txt")
    txt(tmp_path / "captions.json", content)
    options = PrepareOptions(captions=tmp_path / "captions.json")
    with pytest.raises(ValueError, match="caption"):
        prepare([tmp_path / "a.txt"], tmp_path / "set", options)


def test_keys_are_safe_unique_and_short() -> None:
    assert make_key("plain-Name_1") == "plain-Name_1"
    stems = ["a/b", "a_b", "a.b", "a b", "ä", "п" * 300, "x" * 91, "x" * 92, "img.v1.0", "img.v1.1"]
    keys = [make_key(s) for s in stems]
    assert len(set(keys)) == len(stems)
    assert all(len(k) <= KEY_MAX for k in keys)
    assert all(k.replace("-", "").replace("_", "").isalnum() and k.isascii() for k in keys)


def test_splits_follow_shares_or_the_sources_own_folders(tmp_path: Path, source: Path) -> None:
    digests = [hashlib.sha256(b"key%d" % i).digest() for i in range(4000)]
    splits = [split_of(digest, (0.9, 0.05, 0.05)) for digest in digests]
    assert splits.count("train") == pytest.approx(3600, abs=80)
    assert splits.count("val") == pytest.approx(200, abs=60)
    for split, n in (("train", 1), ("val", 2), ("test", 3)):
        for i in range(n):
            txt(tmp_path / "own" / split / f"{i}.txt")
    prepared = prepare(
        [tmp_path / "own", source], tmp_path / "set", PrepareOptions(shares=ALL_TRAIN)
    )
    counts = {split: c["documents"] for split, c in prepared.report["splits"].items()}
    assert counts == {"train": 41, "val": 2, "test": 3}
    for segments in documents(tmp_path / "set").values():
        folder = str(segments[0]["source"]).partition("/")[0]
        assert segments[0]["split"] == (folder if folder in ("val", "test") else "train")


def test_the_order_is_a_shuffle_by_the_key(tmp_path: Path, source: Path) -> None:
    options = PrepareOptions(shares=ALL_TRAIN, shard_bytes=20_000)
    prepare([source], tmp_path / "set", options)
    keys = list(documents(tmp_path / "set"))
    assert keys == sorted(keys, key=lambda k: hashlib.sha256(k.encode()).digest())
    shards = ShardSet(tmp_path / "set").shards
    assert len(shards) > 2
    assert all(s.size <= 20_000 + 20_480 for s in shards)


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name, data in ((b"\xff.txt", b"odd"), (b"\xfe.txt", b"")):
        with open(os.fsencode(tmp_path / "source") + b"/" + name, "wb") as file:
            file.write(data)
    prepared = prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions())
    assert skipped(prepared) == {os.fsdecode(b"\xfe.txt"): "empty"}
    (segments,) = documents(tmp_path / "set").values()
    assert segments[0]["source"] == os.fsdecode(b"\xff.txt")
    assert ShardSet(tmp_path / "set").report == prepared.report


def test_options_of_decoding_are_used(tmp_path: Path) -> None:
    sound(tmp_path / "source" / "a.flac", 800)
    png(tmp_path / "source" / "b.png")
    options = PrepareOptions(decode=DecodeOptions(audio_rate=8000), shares=ALL_TRAIN)
    prepare([tmp_path / "source"], tmp_path / "set", options)
    assert documents(tmp_path / "set")["a"][0]["rate"] == 8000

    options = PrepareOptions(decode=DecodeOptions(keep_files=True), shares=ALL_TRAIN)
    prepare([tmp_path / "source"], tmp_path / "kept", options)
    found = documents(tmp_path / "kept")
    assert found["b"][0]["data"] == (tmp_path / "source" / "b.png").read_bytes()
    assert found["b"][0]["is_file"] is True


def test_shards_have_the_bytes_that_they_always_had(tmp_path: Path, source: Path) -> None:
    prepared = prepare([source], tmp_path / "set", PrepareOptions(shard_bytes=20_000, workers=2))
    tars = b"".join(path.read_bytes() for path in sorted((tmp_path / "set").glob("*.tar")))
    expected = "083e53d28695c1daeb6e7012df466cbc994a69f788400b274513554653163a4b"
    assert hashlib.sha256(tars).hexdigest() == expected
    assert prepared.root == "a4c80234637a6d78a201a27f0949db068854f17d38da20943feb91c02e41d0fe"
    # A set of the same input is found complete by this hash, whatever the version that made it.
    expected = "64df79e25636e57bff7ab30db05d69229985f6070a7f177fa270367f3ab834bd"
    assert prepared.report["input"] == expected


# --- what is skipped ---


BAD_FILES = {
    "pair.png": "truncated",
    "empty.txt": "empty",
    "garbage.png": "unknown kind",
    "broken.png": "unreadable",
    "gone.png": "missing",
    "link": "link",
    "pipe.wav": "unknown kind",
    "large.txt": "over the limit",
    "claims.wav": "over the limit",
    "cut.wav": "truncated",
    "bomb.png": "over the limit",
    "none.png": "empty",
}


def write_bad_files(source: Path) -> None:
    """Write the files of BAD_FILES, some beside a good one of the same stem, and hidden files."""
    png(source / "pair.png", 60, 60)
    txt(source / "pair.txt", "goes on alone")
    whole = (source / "pair.png").read_bytes()
    (source / "pair.png").write_bytes(whole[: len(whole) // 2])
    txt(source / "empty.txt", "")
    txt(source / "garbage.png", b"\0\1\2\3")
    txt(source / "broken.png", b"\x89PNG\r\n\x1a\n" + bytes(50))
    (source / "gone.png").symlink_to(source / "nowhere")
    (source / "link").symlink_to(source.parent)
    os.mkfifo(source / "pipe.wav")
    txt(source / "large.txt", "x" * 40_000)
    png(source / "two.png")
    png(source / "two.ppm")
    txt(source / ".hidden.txt")
    txt(source / ".git" / "config.txt")
    header = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 16_000, 1, 8) + b"data"
    claimed_size = struct.pack("<I", 3 << 30)
    txt(source / "claims.wav", b"RIFF" + claimed_size + header + claimed_size + bytes(60))
    sound(source / "cut.wav", 900, kind="WAV")
    (source / "cut.wav").write_bytes((source / "cut.wav").read_bytes()[:1000])
    for name, side in (("bomb", 50_000), ("none", 0)):
        size = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        check = struct.pack(">I", zlib.crc32(size))
        txt(source / f"{name}.png", b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + size + check)


def test_bad_files_are_counted_under_their_reasons(tmp_path: Path) -> None:
    source, other, out = tmp_path / "source", tmp_path / "other", tmp_path / "set"
    for i in range(15):
        txt(source / f"good{i}.txt")
    write_bad_files(source)
    txt(other / "good3.txt", "the same name again")
    sources = [source, other, tmp_path / "not_there"]
    options = PrepareOptions(decode=DecodeOptions(limits=Limits(max_bytes=30_000)), workers=2)
    prepared = prepare(sources, out, options)
    assert skipped(prepared) == {
        **BAD_FILES,
        "not_there": "missing",
    }
    found = documents(out)
    assert set(found) == {
        *(f"good{i}" for i in range(15) if i != 3),
        *(make_key(f"{folder}/good3.txt") for folder in ("source", "other")),
        *(make_key(name) for name in ("two.png", "two.ppm")),
        "pair",
    }
    assert [s["source"] for s in found["pair"]] == ["pair.txt"]
    assert found[make_key("other/good3.txt")][0]["data"] == b"the same name again"
    assert str(tmp_path) not in (out / SET_MANIFEST).read_text()
    assert "duplicate key" not in summary(prepared, out)


def test_an_unreadable_file_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that share a key are opened when the sources are scanned, for their first bytes."""
    for name in ("a.txt", "b.txt"):
        txt(tmp_path / "source" / name)
    png(tmp_path / "source" / "b.png")

    def refusing(path: str, mode: str) -> IO[bytes]:
        if path.endswith("b.txt"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return open(path, mode)

    monkeypatch.setattr("bytelm.pipelines.prepare.grouping.open", refusing, raising=False)
    prepared = prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions())
    assert skipped(prepared) == {"b.txt": "unreadable"}
    assert prepared.report["skipped_files"][0]["detail"] == "Permission denied"
    assert prepared.report["documents"] == 2


def test_a_caption_goes_with_its_bad_file(tmp_path: Path) -> None:
    txt(tmp_path / "source" / "a.txt")
    png(tmp_path / "source" / "b.png")
    txt(tmp_path / "source" / "b.png", (tmp_path / "source" / "b.png").read_bytes()[:60])
    txt(tmp_path / "captions.json", '{"b.png": "b"}')
    options = PrepareOptions(captions=tmp_path / "captions.json")
    prepared = prepare([tmp_path / "source"], tmp_path / "set", options)
    assert prepared.report["documents"] == 1
    reasons = [e["reason"] for e in prepared.report["skipped_files"]]
    assert reasons == ["caption without a file", "truncated"]


def test_too_many_bad_files_are_an_error(tmp_path: Path) -> None:
    txt(tmp_path / "source" / "good.txt")
    txt(tmp_path / "source" / "empty.txt", "")
    for i in range(2):
        png(tmp_path / "source" / f"{i}.png")
        txt(tmp_path / "source" / f"{i}.png", (tmp_path / "source" / f"{i}.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"3 of 4 files .* 1 empty \(empty.txt\), 2 truncated"):
        prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions())
    prepared = prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions(max_bad_share=0.75))
    assert prepared.report["documents"] == 1
    assert not (tmp_path / "set" / PREPARE_STATE).exists()


def test_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such source"):
        prepare([tmp_path / "nowhere"], tmp_path / "set", PrepareOptions())
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match="the sources are empty"):
        prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions())
    txt(tmp_path / "source" / "a.txt", "")
    with pytest.raises(ValueError, match=r"1 empty \(a.txt\)"):
        prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions(max_bad_share=1))
    assert not (tmp_path / "set").exists()
    txt(tmp_path / "source" / "a.png", b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(ValueError, match=r"1 unreadable \(a.png\)"):
        prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions(max_bad_share=1))
    assert list((tmp_path / "set").iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"shard_bytes": 0},
        {"shares": (0.9, 0.2, 0.1)},
        {"max_bad_share": 2.0},
        {"decode": DecodeOptions(audio_channels=2)},
        {"decode": DecodeOptions(audio_rate=0)},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|choose|add up"):
        PrepareOptions(**wrong)


def test_infinity_sets_no_limit(tmp_path: Path) -> None:
    txt(tmp_path / "source" / "a.txt", "a text")
    no_limit = ("--max-mb", "inf", "--shard-mb", "inf")
    bytelm("prepare", tmp_path / "source", "--out", tmp_path / "set", *no_limit)
    assert [s[0]["data"] for s in documents(tmp_path / "set").values()] == [b"a text"]


# --- progress ---


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown(
    tmp_path: Path, source: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytelm.pipelines.runtime.progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr("bytelm.pipelines.runtime.progress.SILENT_SECONDS", 0.0)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=100)
    prepare([source], tmp_path / "set", PrepareOptions(), console)
    assert "B/s" in shown.getvalue()
    assert ("40/40" if terminal else "40 of 40 documents") in shown.getvalue()


def test_more_shards_than_there_are_numbers_for_are_refused_early(tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    table.write_text('{"text": "a"}\n' * 80_000)
    with pytest.raises(ValueError, match=r"more than 1,000,000 shards .* --shard-mb, such as 2"):
        prepare([table], tmp_path / "set", PrepareOptions(shard_bytes=1))
    assert list(tmp_path.glob("set/*")) == []


def test_few_documents_have_few_shards_whatever_their_size(tmp_path: Path) -> None:
    source = tmp_path / "source"
    txt(source / "long.txt", "words " * 200_000)
    prepare([source], tmp_path / "set", PrepareOptions(shard_bytes=1))
    assert len(ShardSet(tmp_path / "set").shards) == 1
