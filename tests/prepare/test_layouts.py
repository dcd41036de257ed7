"""Datasets as people have them: captions, splits and bookkeeping are recognised, and named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet
import pytest
from helpers.source_files import documents, png, skipped, sound, txt

from bytelm.pipelines.prepare.prepare import Prepared, PrepareOptions, prepare, summary
from bytelm.pipelines.prepare.tables import TableFields


def prepared_of(tmp_path: Path, captions: Path | None = None) -> Prepared:
    return prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions(captions=captions))


def texts_and_kinds(tmp_path: Path) -> set[tuple[str, ...]]:
    """The texts of each document, and the modalities of its other segments."""
    return {tuple(map(text_or_kind, d)) for d in documents(tmp_path / "set").values()}


def text_or_kind(segment: dict[str, object]) -> str:
    data = segment["data"]
    assert isinstance(data, bytes)
    return data.decode() if segment["modality"] == "text" else str(segment["modality"])


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def png_bytes(tmp_path: Path, seed: int = 0) -> bytes:
    png(tmp_path / "one.png", seed=seed)
    return (tmp_path / "one.png").read_bytes()


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows as CSV, JSON lines or Parquet, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        path.write_text("\n".join(",".join(f'"{value}"' for value in line) for line in lines))


def test_pointers_of_git_lfs_end_with_the_way_out(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00{}\nsize 12345\n"
    for i in range(4):
        txt(tmp_path / "src" / f"{i}.png", pointer.format(i))
    with pytest.raises(ValueError, match=r"4 git-lfs pointer .*run `git lfs pull`"):
        prepared_of(tmp_path)


def test_names_are_checked_against_content_in_trees_and_in_tars(tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><html>502 Bad Gateway</html>"
    members = {"a.jpg": page, "b.png": png_bytes(tmp_path), "b.txt": b"a boat", "c.wav": page}
    for name, data in members.items():
        txt(tmp_path / "src" / name, data)
    tar(tmp_path / "src" / "t.tar", members)
    prepared = prepared_of(tmp_path)
    names = ("a.jpg", "c.wav", "t.tar/a.jpg", "t.tar/c.wav")
    assert skipped(prepared) == dict.fromkeys(names, "name and content disagree")
    details = {entry["detail"] for entry in prepared.report["skipped_files"]}
    assert details == {"named .jpg, holds text (HTML)", "named .wav, holds text (HTML)"}
    assert texts_and_kinds(tmp_path) == {("a boat", "image")}


def test_a_pair_whose_image_is_none_counts_as_broken(tmp_path: Path) -> None:
    txt(tmp_path / "src" / "a.jpg", "error code: 502")
    txt(tmp_path / "src" / "a.txt", "a red boat")
    png(tmp_path / "src" / "b.png")
    txt(tmp_path / "src" / "b.txt", "a green boat")
    prepared = prepared_of(tmp_path)
    assert skipped(prepared) == {"a.jpg": "name and content disagree"}
    assert texts_and_kinds(tmp_path) == {("a red boat",), ("a green boat", "image")}
    assert prepared.report["lost"]["pairs"] == {"lost": 1, "total": 2}


def test_utf16_is_converted_and_said(tmp_path: Path) -> None:
    txt(tmp_path / "src" / "a.txt", "ein Text".encode("utf-16"))
    txt(tmp_path / "src" / "b.srt", "第一章".encode("utf-16"))
    txt(tmp_path / "src" / "c.txt", "\ufeffkept")
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {("ein Text",), ("第一章",), ("\ufeffkept",)}
    assert "converted from UTF-16: 2 files (" in summary(prepared, tmp_path / "set")


def test_img2dataset_as_files_gives_its_captions(tmp_path: Path) -> None:
    for i in range(3):
        stem = tmp_path / "src" / "00000" / f"{i:09d}"
        png(stem.with_suffix(".png"), seed=i)
        txt(stem.with_suffix(".txt"), f"a red boat {i}")
        metadata = {"caption": f"not this {i}", "url": "http://x/y.png", "sha256": "00"}
        txt(stem.with_suffix(".json"), json.dumps(metadata))
    txt(tmp_path / "src" / "00000_stats.json", '{"count": 3}')
    txt(tmp_path / "src" / "00000.parquet", b"PAR1\0\0PAR1")
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {(f"a red boat {i}", "image") for i in range(3)}
    assert prepared.report["skipped"] == {"bookkeeping": 2, "metadata": 3}
    assert "img2dataset: of 3 JSON files" in summary(prepared, tmp_path / "set")


def test_the_output_folder_of_img2dataset_gives_its_pairs(tmp_path: Path) -> None:
    image = png_bytes(tmp_path)
    tar(
        tmp_path / "src" / "00000.tar",
        {
            f"{i}.{suffix}": data
            for i in range(5)
            for suffix, data in (("png", image), ("txt", b"boat %d" % i), ("json", b"{}"))
        },
    )
    txt(tmp_path / "src" / "00000_stats.json", '{"count": 5}')
    txt(tmp_path / "src" / "00000.parquet", b"PAR1\0\0PAR1")
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {(f"boat {i}", "image") for i in range(5)}
    assert skipped(prepared) == {
        "00000_stats.json": "bookkeeping",
        "00000.parquet": "bookkeeping",
        **{f"00000.tar/{i}.json": "metadata" for i in range(5)},
    }


def test_the_audio_tars_of_clap_give_captions_and_splits(tmp_path: Path) -> None:
    sound(tmp_path / "bell.flac")
    data = (tmp_path / "bell.flac").read_bytes()
    for split in ("train", "valid", "test"):
        members = {}
        for i in range(6):
            description = {"text": [f"a bell {split} {i}", "ringing"], "tag": ["bell"]}
            members |= {f"{i}.flac": data, f"{i}.json": json.dumps(description).encode()}
        tar(tmp_path / "src" / split / "name0.tar", members)
        txt(tmp_path / "src" / split / "sizes.json", '{"name0.tar": 6}')
    prepared = prepared_of(tmp_path)
    found = sorted(
        (segments[0]["split"], segments[0]["data"], segments[1]["modality"])
        for segments in documents(tmp_path / "set").values()
    )
    names = {"train": "train", "val": "valid", "test": "test"}
    assert found == sorted(
        (split, f"a bell {name} {i}".encode(), "audio")
        for split, name in names.items()
        for i in range(6)
    )
    names_of_sizes = (f"{name}/sizes.json" for name in names.values())
    assert skipped(prepared) == dict.fromkeys(names_of_sizes, "bookkeeping")


def test_a_json_beside_a_sound_or_an_image_gives_its_caption(tmp_path: Path) -> None:
    sound(tmp_path / "src" / "bell.flac")
    txt(tmp_path / "src" / "bell.json", '{"text": ["a bell", "ringing"], "tag": ["bell"]}')
    png(tmp_path / "src" / "dog.png")
    txt(tmp_path / "src" / "dog.png.json", '{"caption": "a dog"}')
    png(tmp_path / "src" / "map.png", seed=1)
    txt(tmp_path / "src" / "map.json", '{"tiles": 4}')
    txt(tmp_path / "src" / "alone.json", '{"text": "a document"}')
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {
        ("a bell", "audio"),
        ("a dog", "image"),
        ("image",),
        ('{"text": "a document"}',),
    }
    names = ("bell.json", "dog.png.json", "map.json")
    assert skipped(prepared) == dict.fromkeys(names, "metadata")


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".cap", ".lab"])
def test_a_text_of_the_same_stem_is_the_caption(tmp_path: Path, suffix: str) -> None:
    png(tmp_path / "src" / "dog.png")
    txt(tmp_path / "src" / f"dog{suffix}", "a dog")
    txt(tmp_path / "src" / "dog.json", '{"caption": "metadata"}')
    prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {("a dog", "image")}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["text", "caption", "my_words"])
def test_captions_of_an_image_folder_are_used(tmp_path: Path, suffix: str, column: str) -> None:
    rows: list[dict[str, object]] = []
    for i in range(3):
        png(tmp_path / "src" / "train" / "deep" / f"{i}.png", seed=i)
        rows.append({"file_name": f"./deep/{i}.png", "width": 6, column: f"boat {i}, red"})
    write_table(tmp_path / "src" / "train" / f"metadata.{suffix}", rows)
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {(f"boat {i}, red", "image") for i in range(3)}
    assert skipped(prepared) == {f"train/metadata.{suffix}": "metadata"}
    shown = summary(prepared, tmp_path / "set")
    assert f"ImageFolder, column '{column}': 3 captions (train/metadata.{suffix})" in shown


def test_an_image_folder_without_a_clear_column_says_the_way_out(tmp_path: Path) -> None:
    png(tmp_path / "src" / "0.png")
    rows: list[dict[str, object]] = [{"file_name": "0.png", "artist": "Ada", "style": "oil"}]
    write_table(tmp_path / "src" / "metadata.csv", rows)
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {("image",)}
    shown = "metadata.csv with the columns artist, style): name it text, or give --captions"
    assert shown in summary(prepared, tmp_path / "set")


def test_captions_of_missing_files_weigh(tmp_path: Path) -> None:
    png(tmp_path / "src" / "0.png")
    rows: list[dict[str, object]] = [{"file_name": f"{i}.png", "text": f"t{i}"} for i in range(2)]
    write_table(tmp_path / "src" / "metadata.jsonl", rows)
    prepared = prepared_of(tmp_path)
    assert skipped(prepared) == {"1.png": "caption without a file", "metadata.jsonl": "metadata"}
    assert prepared.report["lost"]["pairs"] == {"lost": 1, "total": 2}


def test_the_users_captions_and_texts_beside_files_win(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    for i in range(3):
        png(tmp_path / "src" / f"{i}.png", seed=i)
        rows.append({"file_name": f"{i}.png", "text": f"table {i}"})
    write_table(tmp_path / "src" / "metadata.jsonl", rows)
    txt(tmp_path / "src" / "1.txt", "beside 1")
    txt(tmp_path / "captions.json", '{"0.png": "given 0"}')
    prepared_of(tmp_path, tmp_path / "captions.json")
    expected = {("given 0", "image"), ("beside 1", "image"), ("table 2", "image")}
    assert texts_and_kinds(tmp_path) == expected


def test_a_metadata_table_without_images_is_no_captions(tmp_path: Path) -> None:
    txt(tmp_path / "src" / "metadata.csv", "file_name,score,rank\na.png,1,2\n")
    prepared = prepared_of(tmp_path)
    assert prepared.report["documents"] == 1
    assert not prepared.report["skipped"]


def test_an_lj_speech_table_gives_the_text_as_written(tmp_path: Path) -> None:
    lines = []
    for i in range(3):
        sound(tmp_path / "src" / "wavs" / f"LJ-{i}.wav", kind="WAV", seed=i)
        lines.append(f'LJ-{i}|In "{i}", he said|In "number {i}", he said\n')
    txt(tmp_path / "src" / "metadata.csv", "".join(lines))
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {(f'In "{i}", he said', "audio") for i in range(3)}
    assert "LJSpeech: 3 captions (metadata.csv)" in summary(prepared, tmp_path / "set")


def test_common_voice_gives_sentences_and_splits(tmp_path: Path) -> None:
    header = "client_id\tpath\tsentence\tup_votes\n"
    tables = {"train": (0, 1), "dev": (2,), "test": (3,), "validated": (0, 1, 2, 3)}
    for i in range(5):
        sound(tmp_path / "src" / "clips" / f"{i}.flac", seed=i)
    for name, numbers in tables.items():
        rows = (f'x\t{i}.flac\tSay "{i}"\t2\n' for i in numbers)
        txt(tmp_path / "src" / f"{name}.tsv", header + "".join(rows))
    txt(tmp_path / "src" / "invalidated.tsv", f"{header}x\t4.flac\twrong\t0\n")
    txt(tmp_path / "src" / "clip_durations.tsv", "clip\tduration\n0.flac\t1\n")
    prepared = prepared_of(tmp_path)
    found = {
        segments[0]["data"]: segments[0]["split"]
        for segments in documents(tmp_path / "set").values()
        if len(segments) == 2
    }
    splits = {0: "train", 1: "train", 2: "val", 3: "test"}
    assert found == {f'Say "{i}"'.encode(): split for i, split in splits.items()}
    assert prepared.report["documents"] == 5
    assert prepared.report["skipped"] == {"bookkeeping": 2, "metadata": 4}


def test_libri_speech_gives_its_transcripts(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "84" / "121"
    for i in range(2):
        sound(folder / f"84-121-{i:04d}.flac", seed=i)
    txt(folder / "84-121.trans.txt", "84-121-0000 GO DO YOU HEAR\n84-121-0001 BUT IN LESS\n")
    txt(tmp_path / "src" / "notes.trans.txt", "a text of another kind\n")
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {
        ("GO DO YOU HEAR", "audio"),
        ("BUT IN LESS", "audio"),
        ("a text of another kind\n",),
    }
    assert skipped(prepared) == {"84/121/84-121.trans.txt": "metadata"}


def test_names_of_bookkeeping_count_only_beside_data(tmp_path: Path) -> None:
    tar(tmp_path / "src" / "shards" / "0.tar", {"a.txt": b"a", "b.txt": b"b"})
    beside = ("sizes.json", "dataset_info.json", "state.json", "0.tar.md5", "0.json")
    for name in beside:
        txt(tmp_path / "src" / "shards" / name, '{"0.tar": 2}')
        txt(tmp_path / "src" / "code" / name, "a text")
    txt(tmp_path / "src" / "code" / "desktop.ini", "[.ShellClassInfo]")
    txt(tmp_path / "src" / "shards" / "README.md", "a text")
    prepared = prepared_of(tmp_path)
    names = {f"shards/{name}" for name in beside} | {"code/desktop.ini"}
    assert skipped(prepared) == dict.fromkeys(names, "bookkeeping")
    assert prepared.report["documents"] == 2 + len(beside) + 1


def test_a_damaged_table_costs_no_more_than_itself(tmp_path: Path) -> None:
    for i in range(3):
        png(tmp_path / "src" / f"{i}.png", seed=i)
    txt(tmp_path / "src" / "metadata.parquet", b"PAR1" + bytes(range(256)) + b"PAR1")
    prepared = prepared_of(tmp_path)
    assert prepared.report["documents"] == 3
    assert list(skipped(prepared)) == ["metadata.parquet"]


def test_further_captions_of_one_image_in_a_table_are_counted(tmp_path: Path) -> None:
    png(tmp_path / "src" / "a.png")
    rows: list[dict[str, object]] = [
        {"file_name": "a.png", "text": text} for text in ("one", "one", "two", "three")
    ]
    write_table(tmp_path / "src" / "metadata.csv", rows)
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {("one", "image")}
    shown = "not used: 2 captions of files that have another one"
    assert shown in summary(prepared, tmp_path / "set")


def test_clips_of_common_voice_that_no_split_names_are_train(tmp_path: Path) -> None:
    header = "client_id\tpath\tsentence\n"
    source = tmp_path / "src"
    for i in range(40):
        sound(source / "clips" / f"{i}.wav")
    for table, i in (("train", 0), ("dev", 1), ("test", 2)):
        txt(source / f"{table}.tsv", f"{header}x\t{i}.wav\ttext {i}\n")
    txt(source / "validated.tsv", header + "".join(f"x\t{i}.wav\tt\n" for i in range(3, 20)))
    splits = prepared_of(tmp_path).report["splits"]
    assert {name: s["documents"] for name, s in splits.items()} == {
        "train": 38,
        "val": 1,
        "test": 1,
    }


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_pointer_to_a_tar_ends_with_the_way_out(tmp_path: Path, name: str) -> None:
    tar(tmp_path / "src" / "b.tar", {f"{i}.txt": b"text %d" % i for i in range(4)})
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n"
    txt(tmp_path / "src" / name, pointer.format("0" * 64))
    assert skipped(prepared_of(tmp_path)) == {name: "git-lfs pointer"}
    with pytest.raises(ValueError, match="run `git lfs pull`"):
        prepare([tmp_path / "src" / name], tmp_path / "other", PrepareOptions())


@pytest.mark.parametrize(
    "header", ["file_name;text", "filename,text", "image;label;text", "ID,text"]
)
def test_metadata_may_have_semicolons_and_any_column_of_names(tmp_path: Path, header: str) -> None:
    separator = ";" if ";" in header else ","
    values = {"text": '"a cat{} and, a dog{}"'.replace("{}", separator), "label": "3"}
    names = header.split(separator)
    row = separator.join(["{}.png", *(values[name] for name in names[1:])])
    for i in range(3):
        png(tmp_path / "src" / f"{i}.png", seed=i)
    txt(tmp_path / "src" / "metadata.csv", "\n".join([header, *(row.format(i) for i in range(3))]))
    prepared = prepared_of(tmp_path)
    assert texts_and_kinds(tmp_path) == {(f"a cat{separator} and, a dog{separator}", "image")}
    assert prepared.report["documents"] == 3


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_that_names_files_of_the_source_gives_their_captions(
    tmp_path: Path, suffix: str
) -> None:
    """As rows of its own it would put one copy of an image into train and another into val."""
    source = tmp_path / "src"
    rows = [{"image": f"img/{i}.png", "number": i, "words": f"a boat {i}"} for i in range(20)]
    for i in range(20):
        png(source / "img" / f"{i}.png", seed=i)
    if suffix == "csv":
        lines = ["image,number,words", *(",".join(map(str, row.values())) for row in rows)]
        txt(source / "data.csv", "\n".join(lines))
    elif suffix == "jsonl":
        txt(source / "data.jsonl", "\n".join(map(json.dumps, rows)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source / "data.parquet")
    named = PrepareOptions(fields=TableFields(text="words", image="image"))
    for name, options in (("guessed", PrepareOptions()), ("named", named)):
        report = prepare([source], tmp_path / name, options).report
        assert (report["documents"], report["files"]) == (20, 21)
        texts = sorted(segments[0]["data"] for segments in documents(tmp_path / name).values())
        assert texts == sorted(f"a boat {i}".encode() for i in range(20))
    with pytest.raises(ValueError, match="no table has a column 'other'; columns: image, number"):
        prepare([source], tmp_path / "x", PrepareOptions(fields=TableFields(text="other")))
