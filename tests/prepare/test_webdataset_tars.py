"""prepare reads the WebDataset tars of other programs: whole, odd, hostile and damaged ones."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from helpers.source_files import documents, png, skipped, sound, txt
from helpers.web_server import be_impatient, serving

from bytelm.modalities.base import DecodeOptions, Limits
from bytelm.pipelines.prepare.documents import SAME_FILE, make_key
from bytelm.pipelines.prepare.prepare import Prepared, PrepareOptions, prepare
from bytelm.pipelines.prepare.webdataset_tars import expand_braces

ALL_BAD = PrepareOptions(max_bad_share=1.0)


def image_bytes(folder: Path, seed: int = 0, suffix: str = "png") -> bytes:
    path = folder / f"image.{suffix}"
    png(path, seed=seed)
    return path.read_bytes()


def sound_bytes(folder: Path, seed: int = 0, kind: str = "FLAC") -> bytes:
    path = folder / "sound"
    sound(path, seed=seed, kind=kind)
    return path.read_bytes()


def write_tar(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    """Write a tar of regular members with Python's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def texts(n: int) -> dict[str, bytes]:
    """Members with a text each."""
    return {f"{i:03d}.txt": b"text %d" % i for i in range(n)}


def segments_of(out: Path, name: str, key: str) -> list[dict[str, object]]:
    """The segments of a document that came from a tar."""
    return documents(out)[make_key(f"{name}/{key}")]


def prepare_tar(tmp_path: Path, tar: Path, options: PrepareOptions = ALL_BAD) -> Prepared:
    return prepare([tar], tmp_path / "set", options)


# --- whole ---


def test_samples_of_webdatasets_writer_become_documents(tmp_path: Path) -> None:
    tar = tmp_path / "shard.tar"
    jpeg, wav = image_bytes(tmp_path, 1, "jpg"), sound_bytes(tmp_path, 2, "WAV")
    with webdataset.TarWriter(str(tar)) as writer:
        writer.write(
            {"__key__": "pair", "jpg": jpeg, "txt": "a caption", "json": {"caption": "no"}}
        )
        writer.write({"__key__": "described", "jpg": jpeg, "json": {"caption": "of the JSON"}})
        writer.write({"__key__": "spoken", "wav": wav, "json": {"text": "of the field text"}})
        writer.write({"__key__": "in/folder", "png": image_bytes(tmp_path)})
        writer.write({"__key__": "number", "jpg": jpeg, "json": {"width": 3}})
        writer.write({"__key__": "large", "PNG": image_bytes(tmp_path, 4)})
    prepared = prepare_tar(tmp_path, tar, PrepareOptions())
    found = {k: [s["data"] for s in v] for k, v in documents(tmp_path / "set").items()}
    assert len(found) == prepared.report["documents"] == 6
    assert found[make_key("shard/pair")][0] == b"a caption"
    assert found[make_key("shard/described")][0] == b"of the JSON"
    assert found[make_key("shard/spoken")][0] == b"of the field text"
    assert len(found[make_key("shard/in/folder")]) == len(found[make_key("shard/number")]) == 1
    described = segments_of(tmp_path / "set", "shard", "described")
    assert [s["source"] for s in described] == ["shard.tar/described.jpg"] * 2
    assert skipped(prepared) == {
        "shard.tar/pair.json": "metadata",
        "shard.tar/number.json": "metadata",
    }
    assert prepared.report["files"] == 11 + 1


def test_members_decode_as_the_same_files_would(tmp_path: Path) -> None:
    members = {}
    for i, suffix in enumerate(("png", "jpg", "jpeg", "webp", "gif", "bmp")):
        members[f"i{i}.{suffix}"] = image_bytes(tmp_path, i, suffix)
    for i, kind in enumerate(("WAV", "FLAC", "OGG", "MP3")):
        path = tmp_path / "sound"
        sound(path, 3000, i, kind, None)
        members[f"s{i}.{kind.lower()}"] = path.read_bytes()
    for name, data in members.items():
        txt(tmp_path / "files" / name, data)
    prepare([tmp_path / "files"], tmp_path / "expected", PrepareOptions())
    prepare_tar(tmp_path, write_tar(tmp_path / "a.tar", members), PrepareOptions(workers=2))
    expected = documents(tmp_path / "expected")
    assert len(expected) == len(members)
    for key, segments in expected.items():
        (found,) = segments_of(tmp_path / "set", "a", key)
        assert found["data"] == segments[0]["data"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_format(tmp_path: Path, form: int) -> None:
    long = "/".join(["folder" * 8] * 3) + "/kätzchen" + "x" * 40 + ".txt"
    members = {long: b"long", "short.txt": b"short"}
    prepare_tar(tmp_path, write_tar(tmp_path / "a.tar", members, format=form), PrepareOptions())
    assert {str(s[0]["source"]) for s in documents(tmp_path / "set").values()} == {
        f"a.tar/{name}" for name in members
    }


def test_equal_keys_of_two_tars_are_two_documents(tmp_path: Path) -> None:
    for name in ("one/a.tar", "one/b.tar", "two/a.tar"):
        write_tar(tmp_path / name, {"same.txt": name.encode()})
    prepared = prepare([tmp_path / "one"], tmp_path / "set", PrepareOptions())
    assert {s[0]["data"] for s in documents(tmp_path / "set").values()} == {
        b"one/a.tar",
        b"one/b.tar",
    }
    prepared = prepare([tmp_path / "one", tmp_path / "two"], tmp_path / "both", ALL_BAD)
    assert skipped(prepared) == {}
    assert {key: s[0]["data"] for key, s in documents(tmp_path / "both").items()} == {
        make_key("one/a.tar/same.txt"): b"one/a.tar",
        make_key("b/same"): b"one/b.tar",
        make_key("two/a.tar/same.txt"): b"two/a.tar",
    }


def test_a_pattern_names_tars_and_what_is_missing_is_counted(tmp_path: Path) -> None:
    for i in (8, 9, 11):
        write_tar(tmp_path / f"shard-{i:03d}.tar", texts(i))
    pattern = tmp_path / "shard-{008..011}.tar"
    prepared = prepare([pattern], tmp_path / "set", PrepareOptions())
    assert prepared.report["documents"] == 28
    assert skipped(prepared) == {"shard-010.tar": "missing"}
    assert expand_braces("{train,val}/{9..11}.tar") == [
        f"{split}/{i}.tar" for split in ("train", "val") for i in (9, 10, 11)
    ]
    with pytest.raises(ValueError, match=r"no such source: .*none-00.tar, .*none-01.tar"):
        prepare([tmp_path / "none-{00..01}.tar"], tmp_path / "no", PrepareOptions())


def test_a_tar_in_a_folder_of_a_split_stays_in_it(tmp_path: Path) -> None:
    for split, n in (("train", 4), ("val", 2), ("test", 1)):
        write_tar(tmp_path / "source" / split / f"{split}.tar", texts(n))
    expected = {"train": 4, "val": 2, "test": 1}
    patterns = [tmp_path / "source" / split / f"{split}.tar" for split in expected]
    for i, sources in enumerate(([tmp_path / "source"], patterns)):
        report = prepare(sources, tmp_path / str(i), PrepareOptions()).report
        assert {s: c["documents"] for s, c in report["splits"].items()} == expected


# --- what is skipped ---


def test_members_that_webdataset_drops_or_joins_silently_are_documents(tmp_path: Path) -> None:
    members = {
        **texts(20),
        "img.v1.0.txt": b"joined with the next",
        "img.v1.1.txt": b"by webdataset",
        "README": b"dropped by webdataset",
        "a.cls": b"7",
        "foo.c": b"one",
        "foo.h": b"two",
        "picture.bin": image_bytes(tmp_path),
        "a.pyd": pickle.dumps(1),
        "a.pth": b"\0",
        "b.txt": b"",
        "c.png": b"\0" * 40_000,
        "e.JPG": b"no jpeg",
    }
    limits = DecodeOptions(limits=Limits(max_bytes=30_000))
    tar = write_tar(tmp_path / "a.tar", members)
    prepared = prepare_tar(tmp_path, tar, PrepareOptions(decode=limits))
    assert skipped(prepared) == {
        "a.tar/a.pyd": "unknown kind",
        "a.tar/a.pth": "unknown kind",
        "a.tar/b.txt": "empty",
        "a.tar/c.png": "over the limit",
        "a.tar/e.JPG": "name and content disagree",
    }
    assert prepared.report["documents"] == 20 + 7
    assert segments_of(tmp_path / "set", "a", "img.v1.0")[0]["data"] == b"joined with the next"
    assert segments_of(tmp_path / "set", "a", "picture")[0]["modality"] == "image"
    assert prepared.report["files"] == 1 + len(members)
    sizes = {entry["name"]: entry["size"] for entry in prepared.report["skipped_files"]}
    assert sizes["a.tar/c.png"] == 40_000


def test_hidden_members_are_left_out_as_in_a_folder_and_noted(tmp_path: Path) -> None:
    """AppleDouble of a Mac, its resource folder, headers of old pax programs, dot files."""
    members = {}
    for i in range(20):
        members[f"./._{i}.txt"] = b"\0\5\26\7" + bytes(150)
        members[f"./{i}.txt"] = b"text %d" % i
    members |= {"__MACOSX/a.txt": b"a", "./PaxHeaders.17/b.txt": b"b", "x/.git/c.txt": b"c"}
    members["./x.txt"] = b""
    prepared = prepare_tar(tmp_path, write_tar(tmp_path / "a.tar", members), PrepareOptions())
    assert skipped(prepared) == {"a.tar/./x.txt": "empty"}
    assert prepared.report["documents"] == 20
    assert prepared.report["files"] == 22
    assert prepared.report["lost"]["files"] == {"lost": 1, "total": 22}
    assert prepared.report["notes"]["hidden members left out"]["count"] == 23


def test_members_of_one_name_are_documents_and_pair_among_themselves(tmp_path: Path) -> None:
    one = {"0.png": image_bytes(tmp_path, 1), "0.txt": b"first"}
    two = {"0.png": image_bytes(tmp_path, 2), "0.txt": b"second"}
    whole = [write_tar(tmp_path / f"{i}.tar", m).read_bytes() for i, m in enumerate((one, two))]
    txt(tmp_path / "a.tar", b"".join(whole))
    prepared = prepare_tar(tmp_path, tmp_path / "a.tar", PrepareOptions())
    found = [[s["data"] for s in segments] for segments in documents(tmp_path / "set").values()]
    assert sorted(text for text, _ in found) == [b"first", b"second"]
    assert found[0][1] != found[1][1]
    assert prepared.report["pairs"] == {"text + image": 2}
    assert prepared.report["skipped"] == {}


@pytest.mark.parametrize(
    ("description", "caption"),
    [
        ({"text": ["a bell", "ringing"], "tag": ["bell"]}, b"a bell"),
        ({"text": ["", "ringing"]}, b"ringing"),
        ({"caption": "a bell", "text": ["other"]}, b"a bell"),
    ],
)
def test_a_list_of_captions_gives_its_first_one(
    tmp_path: Path, description: dict[str, object], caption: bytes
) -> None:
    """The audio tars of LAION and CLAP."""
    members = {"0.flac": sound_bytes(tmp_path), "0.json": json.dumps(description).encode()}
    prepared = prepare_tar(tmp_path, write_tar(tmp_path / "a.tar", members), PrepareOptions())
    assert segments_of(tmp_path / "set", "a", "0")[0]["data"] == caption
    assert prepared.report["skipped"] == {}


def test_a_json_that_describes_no_member_is_a_text(tmp_path: Path) -> None:
    members = {"a.json": b'{"text": "alone"}', "b.json": b"[1]", "c.json": b"{}", "c.bin": b"\0"}
    prepared = prepare_tar(tmp_path, write_tar(tmp_path / "a.tar", members))
    assert {s[0]["data"] for s in documents(tmp_path / "set").values()} == {
        b'{"text": "alone"}',
        b"[1]",
        b"{}",
    }
    assert skipped(prepared) == {"a.tar/c.bin": "unknown kind"}


def test_a_link_to_a_member_loses_nothing(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"d/a.txt": b"a text"})
    with tarfile.open(tar, "a") as writer:
        for name, kind, target in (
            ("d/hard.txt", tarfile.LNKTYPE, "d/a.txt"),
            ("d/soft.txt", tarfile.SYMTYPE, "a.txt"),
            ("d/" + "long" * 30 + ".txt", tarfile.SYMTYPE, "./../d/a.txt"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            writer.addfile(info)
    prepared = prepare_tar(tmp_path, tar, PrepareOptions(max_bad_share=0.0))
    assert prepared.report["documents"] == 1
    assert prepared.report["skipped"] == {SAME_FILE: 3}


def test_links_devices_and_sparse_members_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("of this machine")
    tar = tmp_path / "a.tar"
    kinds = {
        "hard.txt": (tarfile.LNKTYPE, "link"),
        "soft.txt": (tarfile.SYMTYPE, "link"),
        "device.txt": (tarfile.CHRTYPE, "unknown kind"),
        "pipe.txt": (tarfile.FIFOTYPE, "unknown kind"),
        "other.txt": (b"7", "unknown kind"),
    }
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as writer:
        for name, (kind, _) in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.txt")
            writer.addfile(info)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        writer.addfile(folder)
        sparse = tarfile.TarInfo("sparse.txt")
        sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "10737418240"}
        writer.addfile(sparse)
        for name in ("../escape.txt", "/absolute.txt", "good.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            writer.addfile(info, io.BytesIO(b"good"))
    prepared = prepare_tar(tmp_path, tar)
    expected = {f"a.tar/{name}": reason for name, (_, reason) in kinds.items()}
    assert skipped(prepared) == {**expected, "a.tar/sparse.txt": "sparse"}
    assert prepared.report["documents"] == 3
    assert b"of this machine" not in b"".join(p.read_bytes() for p in (tmp_path / "set").iterdir())
    assert not (tmp_path.parent / "escape.txt").exists()


def test_a_sparse_member_of_gnu_tar_is_refused_and_the_next_one_read(tmp_path: Path) -> None:
    """The old format, with a map that goes on in further blocks, as GNU tar writes it."""
    info = tarfile.TarInfo("holes.txt")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 700
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = bytes(504) + b"\1" + bytes(7)
    last = bytes(512)
    rest = write_tar(tmp_path / "rest.tar", texts(3)).read_bytes()
    txt(tmp_path / "a.tar", bytes(header) + more + last + bytes(1024) + rest)
    prepared = prepare_tar(tmp_path, tmp_path / "a.tar")
    assert skipped(prepared) == {"a.tar/holes.txt": "sparse"}
    assert prepared.report["documents"] == 3


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.zst"])
def test_compressed_tars_are_refused(tmp_path: Path, name: str) -> None:
    plain = write_tar(tmp_path / "plain.tar", texts(3)).read_bytes()
    txt(tmp_path / "source" / "good.txt")
    txt(
        tmp_path / "source" / name, bz2.compress(plain) if name == "a.tar" else gzip.compress(plain)
    )
    prepared = prepare_tar(tmp_path, tmp_path / "source")
    assert skipped(prepared) == {name: "compressed tar"}


def test_a_set_of_ours_is_refused(tmp_path: Path) -> None:
    prepare([write_tar(tmp_path / "a.tar", texts(3))], tmp_path / "set", PrepareOptions())
    with pytest.raises(ValueError, match=r"3 bytelm shard \(test-000000.tar, train"):
        prepare(sorted((tmp_path / "set").glob("*.tar")), tmp_path / "again", ALL_BAD)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[1]", '{"caption": "\\ud800"}', "\xff", "1" * 9999]
)
def test_a_json_that_gives_no_caption_is_metadata(tmp_path: Path, content: str) -> None:
    members = {"a.png": image_bytes(tmp_path), "a.json": content.encode("latin-1")}
    prepared = prepare_tar(tmp_path, write_tar(tmp_path / "a.tar", members), PrepareOptions())
    assert skipped(prepared) == {"a.tar/a.json": "metadata"}
    assert len(segments_of(tmp_path / "set", "a", "a")) == 1


# --- damage ---


def damaged(whole: bytes) -> dict[str, tuple[bytes, int, int]]:
    """Damaged copies of a tar of ten texts, a kilobyte each; with the documents left in each, and
    the bytes lost."""
    fifth = 5 * 1024
    flipped = bytearray(whole)
    flipped[fifth + 3] ^= 1
    size = bytearray(whole)
    size[fifth + 124 : fifth + 136] = b"77777777777\0"
    size[fifth + 148 : fifth + 156] = b" " * 8
    size[fifth + 148 : fifth + 156] = b"%06o\0 " % sum(size[fifth : fifth + 512])
    return {
        "cut between members": (whole[:fifth], 5, 0),
        "cut inside a header": (whole[: fifth + 100], 5, 100),
        "cut inside data": (whole[: fifth + 515], 5, 515 + 3),
        "cut inside the end mark": (whole[: 10 * 1024 + 512], 10, 0),
        "a header's byte": (bytes(flipped), 9, 1024),
        "a header zeroed": (whole[:fifth] + bytes(1024) + whole[fifth + 1024 :], 9, 1024),
        "a header and its neighbour zeroed": (
            whole[:fifth] + bytes(512) + whole[fifth + 512 :],
            9,
            1024,
        ),
        "an absurd size": (bytes(size), 9, 1024),
        "padding without end": (whole + bytes(3 << 20), 10, len(whole) - 10 * 1024 + (3 << 20)),
        "noise behind the end": (whole + b"noise" * 200, 10, 10 * 1024 - 10 * 1024 + 1000),
        "nothing": (b"", 0, 0),
        "noise": (os.urandom(4096), 0, 4096),
    }


@pytest.mark.parametrize("damage", list(damaged(bytes(20 * 1024))))
def test_documents_before_damage_are_kept_and_it_is_named(tmp_path: Path, damage: str) -> None:
    whole = write_tar(tmp_path / "whole.tar", texts(10)).read_bytes()
    content, kept, lost = damaged(whole)[damage]
    txt(tmp_path / "source" / "a.tar", content)
    txt(tmp_path / "source" / "good.txt")
    prepared = prepare_tar(tmp_path, tmp_path / "source")
    assert skipped(prepared) == {"a.tar": "damaged tar"}
    assert prepared.report["documents"] == kept + 1
    assert prepared.report["skipped_files"][0]["size"] == lost


@pytest.mark.parametrize(
    "records", [b"9 size=x\n", b"6 a=b\n", b"99999 path=a\n", b"0 \n", b"12 path", b"10 size=-1\n"]
)
def test_a_broken_extended_header_is_damage(tmp_path: Path, records: bytes) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    header = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    whole = write_tar(tmp_path / "whole.tar", texts(4)).read_bytes()
    txt(tmp_path / "a.tar", whole[:2048] + header + whole[2048:])
    prepared = prepare_tar(tmp_path, tmp_path / "a.tar")
    broken = records != b"6 a=b\n"
    assert prepared.report["skipped"] == ({"damaged tar": 1} if broken else {})
    assert prepared.report["documents"] == 4


def test_joined_tars_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [
        write_tar(tmp_path / f"{x}.tar", {f"{x}{i}.txt": b"text" for i in range(40)}).read_bytes()
        for x in "abc"
    ]
    txt(tmp_path / "joined.tar", b"".join(parts))
    prepared = prepare_tar(tmp_path, tmp_path / "joined.tar", PrepareOptions(max_bad_share=0.0))
    assert prepared.report["documents"] == 120
    assert skipped(prepared) == {}
    assert prepared.report["notes"] == {
        "several tars joined in one file": {"count": 1, "names": ["joined.tar"]}
    }


def test_a_tar_that_was_cut_off_weighs_what_its_neighbours_suggest(tmp_path: Path) -> None:
    tars = [
        write_tar(tmp_path / f"{x}.tar", {f"{x}{i}.txt": b"text" for i in range(400)}).read_bytes()
        for x in "abc"
    ]
    source = tmp_path / "source"
    txt(source / "whole.tar", tars[0])
    txt(source / "cut.tar", tars[1][: len(tars[1]) // 20])
    txt(source / "joined.tar", tars[1] + tars[2])
    prepared = prepare_tar(tmp_path, source, PrepareOptions())
    assert prepared.report["documents"] == 400 + 20 + 800
    (entry,) = prepared.report["skipped_files"]
    assert entry["name"] == "cut.tar"
    assert entry["count"] == pytest.approx(380, rel=0.02)
    assert "damaged after 20 members" in entry["detail"]
    assert "estimate" in entry["detail"]
    lost = prepared.report["lost"]
    assert lost["files"]["lost"] / lost["files"]["total"] == pytest.approx(380 / 1600, rel=0.02)
    assert lost["bytes"]["lost"] / lost["bytes"]["total"] == pytest.approx(0.95 / 4, rel=0.02)
    with pytest.raises(
        ValueError, match=r"files \(23.7%\).* more than 20%: 380 damaged tar \(cut.tar\)"
    ):
        prepare([source], tmp_path / "strict", PrepareOptions(max_bad_share=0.2))


def test_a_cut_tar_alone_says_that_its_loss_is_unknown(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", texts(10)).read_bytes()
    txt(tmp_path / "source" / "cut.tar", whole[: 5 * 1024])
    prepared = prepare_tar(tmp_path, tmp_path / "source", PrepareOptions())
    (entry,) = prepared.report["skipped_files"]
    assert entry["detail"] == (
        "damaged after 5 members, 0 of 5,120 bytes unread: it ends at byte 5120 without an end "
        "mark; how much followed is unknown"
    )


# --- at URLs ---


def test_tars_at_urls_give_the_set_of_the_same_local_tars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern of URLs, and a server that fails now and then. No download is left behind."""
    be_impatient(monkeypatch)
    tars = [write_tar(tmp_path / f"part-{i}.tar", texts(3 + i)) for i in range(3)]
    with serving() as web:
        for tar in tars:
            web.objects[tar.name] = tar.read_bytes()
        web.script["part-1.tar"].extend(["500", "short"])
        local = prepare(tars, tmp_path / "local", ALL_BAD)
        pattern = f"{web.url}/part-{{0..2}}.tar"
        remote = prepare([pattern], tmp_path / "remote", ALL_BAD)
        assert remote.root == local.root
        assert web.asked.count("part-1.tar") == 3
        assert not (tmp_path / "remote.sources").exists()
        assert not prepare([pattern], tmp_path / "remote", ALL_BAD).made


def test_urls_that_cannot_be_had_are_errors(tmp_path: Path) -> None:
    with serving() as web:
        for url, cause in (
            (f"{web.url}/gone.tar", "does not exist"),
            (f"{web.url}/photo.png", "is no tar"),
            ("ftp://host/part.tar", "ftp"),
        ):
            with pytest.raises(ValueError, match=cause):
                prepare([url], tmp_path / "set", ALL_BAD)
