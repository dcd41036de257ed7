"""The rows of tables become documents: which columns, which rows, with which bytes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from helpers.source_files import documents, png, sound, txt
from helpers.traps import IMAGE_TRAP, Trapped

import bytelm
from bytelm.modalities.base import DecodeOptions, Limits
from bytelm.pipelines.prepare.prepare import Prepared, PrepareOptions, prepare, summary
from bytelm.pipelines.prepare.table_rows import read_rows
from bytelm.pipelines.prepare.tables import TableFields, TableFormat, TableUnit, table_units

Rows = Sequence[dict[str, Any]]


def json_lines(rows: Rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: Rows, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file, **options)
    return file.getvalue()


def separated(rows: Rows, delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def texts_of(folder: Path) -> list[bytes]:
    """The texts of a set, sorted."""
    found = documents(folder).values()
    return sorted(bytes(s["data"]) for segments in found for s in segments)  # type: ignore[call-overload]


def prepare_here(folder: Path, fields: TableFields | None = None, **options: Any) -> Prepared:
    options = {"max_bad_share": 1.0, "fields": fields or TableFields(), **options}
    return prepare([folder / "src"], folder / "set", PrepareOptions(**options))


def skipped(prepared: Prepared) -> dict[tuple[str, str], tuple[int, str]]:
    """Count and detail by name and reason."""
    entries = prepared.report["skipped_files"]
    return {(e["name"], e["reason"]): (e["count"], e["detail"]) for e in entries}


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": json_lines,
    "a.ndjson": json_lines,
    "a.jsonl.gz": lambda rows: gzip.compress(json_lines(rows)),
    "a.json.gz": lambda rows: gzip.compress(json_lines(rows)),
    "a.jsonl.zst": lambda rows: zstandard.compress(json_lines(rows)),
    "a.json.zst": lambda rows: zstandard.compress(json_lines(rows)),
    "a.csv": separated,
    "a.tsv": lambda rows: separated(rows, "\t"),
    "semicolons.csv": lambda rows: separated(rows, ";"),
    "A.CSV.GZ": lambda rows: gzip.compress(separated(rows)),
    "a.parquet": lambda rows: parquet(rows, row_group_size=7),
    "zstd.parquet": lambda rows: parquet(rows, compression="zstd"),
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_row_is_a_document(tmp_path: Path, name: str) -> None:
    rows = [{"id": i, "text": f'Zeile {i}: \u00e4, \U0001f600; "x"\n\t'} for i in range(30)]
    txt(tmp_path / "src" / name, WRITERS[name](rows))
    prepared = prepare_here(tmp_path)
    assert texts_of(tmp_path / "set") == sorted(row["text"].encode() for row in rows)
    assert prepared.report["skipped"] == {}
    assert prepared.report["documents"] == 30
    assert set(prepared.report["splits"]) == {"train", "val", "test"}


def test_rows_have_the_split_of_their_tables_folder(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {i}"} for i in range(20)]
        txt(tmp_path / "src" / split / "a.parquet", parquet(rows))
    prepare_here(tmp_path)
    found = Counter(
        (bytes(s["data"]).split()[0].decode(), s["split"])  # type: ignore[call-overload]
        for segments in documents(tmp_path / "set").values()
        for s in segments
    )
    assert found == {("train", "train"): 20, ("validation", "val"): 20, ("test", "test"): 20}


def test_tables_of_one_name_and_files_of_their_stem_keep_all_documents(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        txt(
            tmp_path / folder / "data.jsonl", json_lines([{"text": f"{folder}{i}"} for i in (1, 2)])
        )
    txt(tmp_path / "a" / "data.txt", "of the same stem")
    txt(tmp_path / "a" / "data.csv", separated([{"text": "c"}]))
    prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "set", PrepareOptions())
    assert texts_of(tmp_path / "set") == [b"a1", b"a2", b"b1", b"b2", b"c", b"of the same stem"]


def test_a_long_name_of_a_table_gives_short_keys(tmp_path: Path) -> None:
    txt(tmp_path / "src" / ("x" * 80) / ("y" * 200 + ".jsonl"), json_lines([{"text": "t"}] * 3))
    assert prepare_here(tmp_path).report["documents"] == 3


# --- columns ---


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "t", "url": "u"}, "t"),
        ({"TEXT": "t", "URL": "u"}, "t"),
        ({"content": "t", "path": "p"}, "t"),
        ({"raw_content": "t", "digest": "d"}, "t"),
        ({"lyrics": "t", "year": 1999}, "t"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_text_column_is_guessed(
    tmp_path: Path, row: dict[str, Any], expected: str, name: str
) -> None:
    txt(tmp_path / "src" / name, WRITERS[name]([row] * 3))
    prepare_here(tmp_path)
    assert texts_of(tmp_path / "set") == [expected.encode()] * 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_table_without_one_candidate_is_refused_with_its_columns(
    tmp_path: Path, name: str
) -> None:
    txt(tmp_path / "src" / "good.txt", "good")
    txt(tmp_path / "src" / name, WRITERS[name]([{"question": "q", "answer": "a"}]))
    txt(tmp_path / "src" / f"two{name}", WRITERS[name]([{"text": "q", "content": "a"}]))
    found = skipped(prepare_here(tmp_path))
    count, detail = found[name, "table"]
    assert count == 1
    assert "question, answer" in detail
    assert "--text-field" in detail
    assert "text, content; choose with --text-field" in found[f"two{name}", "table"][1]
    assert texts_of(tmp_path / "set") == [b"good"]


def test_a_csv_without_a_known_column_stays_a_text(tmp_path: Path) -> None:
    txt(tmp_path / "src" / "numbers.csv", "a,b\n1,2\n")
    prepare_here(tmp_path)
    assert texts_of(tmp_path / "set") == [b"a,b\n1,2\n"]


def test_flags_name_columns(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "text": "t"}
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        txt(tmp_path / "src" / name, WRITERS[f"a.{name[2:]}"]([row]))
    prepared = bytelm.prepare([tmp_path / "src"], tmp_path / "set", text_field="answer")
    assert prepared.report["documents"] == 3
    assert texts_of(tmp_path / "set") == [b"a"] * 3
    with pytest.raises(
        ValueError, match="no table has a column 'reply'; columns: answer, question"
    ):
        bytelm.prepare([tmp_path / "src"], tmp_path / "other", text_field="reply")


# --- images and sounds ---


def media(tmp_path: Path) -> tuple[bytes, bytes]:
    """The bytes of an image and a sound, whose files are no source."""
    png(tmp_path / "elsewhere" / "a.png")
    sound(tmp_path / "elsewhere" / "a.flac")
    folder = tmp_path / "elsewhere"
    return (folder / "a.png").read_bytes(), (folder / "a.flac").read_bytes()


def test_columns_of_bytes_are_images_and_sounds(tmp_path: Path) -> None:
    image, flac = media(tmp_path)
    hugging_face = {"bytes": image, "path": "a.png"}
    rows = [{"caption": f"a boat {i}", "image": hugging_face, "sound": flac} for i in range(4)]
    txt(tmp_path / "src" / "a.parquet", parquet(rows))
    prepared = prepare_here(tmp_path)
    found = documents(tmp_path / "set").values()
    assert [[s["modality"] for s in segments] for segments in found] == [
        ["text", "image", "audio"]
    ] * 4
    pixels = PIL.Image.open(io.BytesIO(image)).tobytes()
    assert all(segments[1]["data"] == pixels for segments in found)
    assert prepared.report["pairs"] == {"text + image + audio": 4}


def test_columns_of_paths_are_images(tmp_path: Path) -> None:
    for i in range(3):
        png(tmp_path / "pictures" / f"{i}.png", seed=i)
    rows = [{"text": f"boat {i}", "picture": f"../pictures/{i}.png"} for i in range(3)]
    rows += [{"text": "gone", "picture": "../pictures/9.png"}]
    rows += [{"text": "absolute", "picture": str(tmp_path / "pictures" / "0.png")}]
    txt(tmp_path / "src" / "a.jsonl", json_lines(rows))
    prepared = prepare_here(tmp_path)
    found = documents(tmp_path / "set").values()
    assert [[s["modality"] for s in segments] for segments in found] == [["text", "image"]] * 3
    assert skipped(prepared)["a.jsonl", "missing"][0] == 2


def test_a_broken_image_costs_its_row(tmp_path: Path) -> None:
    image, _ = media(tmp_path)
    images = [image, image[:60], b"no image", image, None]
    rows = [{"caption": "c", "image": data} for data in images]
    txt(tmp_path / "src" / "a.parquet", parquet(rows))
    prepared = prepare_here(tmp_path)
    assert prepared.report["documents"] == 2
    found = skipped(prepared)
    assert set(found) == {
        ("a.parquet", "truncated"),
        ("a.parquet", "field missing"),
        ("a.parquet", "name and content disagree"),
    }
    assert found["a.parquet", "truncated"][1].endswith(": row 1")


@pytest.mark.parametrize("trap", ["CRASH", "EXIT", "SPIN", "KILLED_ONCE"])
def test_a_row_that_ends_its_process_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    image, _ = media(tmp_path)
    rows = [{"image": image} for i in range(12)]
    rows[7] = {"image": image + IMAGE_TRAP + f" {trap} {tmp_path / 'killed'}".encode()}
    txt(tmp_path / "src" / "a.parquet", parquet(rows))
    prepared = prepare_here(tmp_path, decode=Trapped(), workers=2)
    lost = 0 if trap == "KILLED_ONCE" else 1
    assert prepared.report["documents"] == 12 - lost
    assert [detail[-5:] for _, detail in skipped(prepared).values()] == ["row 7"] * lost


# --- bad rows ---


def test_bad_rows_are_counted_by_reason_and_located(tmp_path: Path) -> None:
    good = [json.dumps({"text": f"t{i}"}).encode() for i in range(20)]
    bad = [
        b"{broken",
        b"[1]",
        b'{"text": "\\ud800"}',
        b'{"text": 3}',
        b'{"text": "\xff"}',
        b'{"text": "a"} {"text": "b"}',
        b"[" * 100_000,
        b'{"text": ""}',
        b'{"other": "x"}',
        b'{"text": "a\\u0000b"}',
        b'{"text": "' + b"x" * 2000 + b'"}',
    ]
    txt(tmp_path / "src" / "a.jsonl", b"\xef\xbb\xbf" + b"\r\n\n".join([*good, *bad]))
    options = DecodeOptions(limits=Limits(max_bytes=1000))
    prepared = prepare_here(tmp_path, decode=options)
    assert texts_of(tmp_path / "set") == sorted(f"t{i}".encode() for i in range(20))
    found = skipped(prepared)
    assert {reason: count for (_, reason), (count, _) in found.items()} == {
        "broken row": 6,
        "empty": 1,
        "field missing": 1,
        "unknown kind": 1,
        "over the limit": 2,
    }
    position = 3 + sum(len(line) + 3 for line in good)
    assert f"the rows at byte {position}, " in found["a.jsonl", "broken row"][1]
    assert found["a.jsonl", "broken row"][1].endswith("and 3 more")
    assert prepared.report["lost"]["files"]["lost"] == 11


def test_a_million_bad_rows_are_one_entry(tmp_path: Path) -> None:
    txt(tmp_path / "src" / "a.jsonl", b'{"text": "good"}\n' * 3 + b"x\n" * 1_000_000)
    prepared = prepare_here(tmp_path)
    assert prepared.report["documents"] == 3
    assert [c for c, _ in skipped(prepared).values()] == [1_000_000]
    assert "1,000,000" in summary(prepared, tmp_path / "set")
    with pytest.raises(ValueError, match="are bad, more than"):
        prepare([tmp_path / "src"], tmp_path / "other", PrepareOptions())


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "A.CSV.GZ", "a.parquet"])
def test_rows_before_damage_are_kept_where_they_can_be_read(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    rows = [{"text": rng.bytes(300).hex()} for _ in range(3000)]
    whole = WRITERS[name](rows)
    txt(tmp_path / "src" / name, whole[: len(whole) * 3 // 4])
    txt(tmp_path / "src" / "good.txt", "good")
    prepared = prepare_here(tmp_path)
    count = prepared.report["documents"]
    (reason,) = (reason for _, reason in skipped(prepared))
    if name == "a.parquet":  # its directory is at its end
        assert (count, reason) == (1, "damaged")
    else:
        assert 1500 < count < 2500
        assert reason in ("truncated", "damaged")


def test_a_damaged_row_group_costs_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"text": rng.bytes(300).hex()} for _ in range(300)]
    data = bytearray(parquet(rows, row_group_size=100, write_page_checksum=True))
    data[len(data) // 2] ^= 1  # in the second row group
    txt(tmp_path / "src" / "a.parquet", data)
    prepared = prepare_here(tmp_path)
    assert prepared.report["documents"] == 200
    assert skipped(prepared)["a.parquet", "damaged"][0] == 100


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pyarrow", "zstandard"):
        txt(tmp_path / "without" / f"{package}.py", "raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"), prepend=os.pathsep)
    for name in ("a.parquet", "a.jsonl.zst"):
        txt(tmp_path / "src" / name, WRITERS[name]([{"text": "t"}]))
    txt(tmp_path / "src" / "good.txt", "good")
    found = skipped(prepare_here(tmp_path))
    assert len(found) == 2
    assert all("pip install 'bytelm[tables]'" in detail for _, detail in found.values())


# --- ranges ---


@pytest.mark.parametrize("end", ["\n", ""])
def test_ranges_have_every_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    lines = [json.dumps({"text": "x" * n}) for n in (0, 1, 5, 40, 41, 3, 100, 7, 0, 2)]
    txt(tmp_path / "a.jsonl", "\n".join(lines) + end)
    size = (tmp_path / "a.jsonl").stat().st_size
    table = TableUnit(
        *("a.jsonl", "a-b", str(tmp_path / "a.jsonl"), TableFormat("jsonl", "")),
        *(TableFields("text"), None, 0, size, 0, None, size),
    )
    for unit_bytes in range(1, size + 2):
        monkeypatch.setattr("bytelm.pipelines.prepare.tables.UNIT_BYTES", unit_bytes)
        units = list(table_units(table, None))
        rows = [row for unit in units for row in read_rows(unit, 0, 1000)]
        assert [row.values for row in rows] == [
            (json.loads(line)["text"], None, None) for line in lines
        ]
        for row in rows:  # a reader can begin at any row
            unit = next(u for u in units if u.start <= row.number < u.stop)
            assert next(read_rows(unit, row.number, 1000)) == row


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


@pytest.mark.parametrize(
    ("name", "data", "reason", "detail"),
    [
        ("a.parquet", POINTER, "git-lfs pointer", "run `git lfs pull`"),
        ("a.jsonl.gz", POINTER, "git-lfs pointer", "run `git lfs pull`"),
        ("a.jsonl", POINTER, "git-lfs pointer", "run `git lfs pull`"),
        (
            "a.jsonl",
            parquet([{"text": "a row"}]),
            "name and content disagree",
            "named as jsonl, holds a Parquet table",
        ),
        (
            "a.parquet",
            b'{"text": "a row"}\n',
            "name and content disagree",
            "named as parquet, holds no Parquet table",
        ),
        ("a.jsonl", b"[1]\n[2]\n", "table", "none of its first lines is a JSON object"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused_with_what_it_is(
    tmp_path: Path, name: str, data: bytes, reason: str, detail: str
) -> None:
    txt(tmp_path / "src" / name, data)
    txt(tmp_path / "src" / "b.txt")
    assert skipped(prepare_here(tmp_path)) == {(name, reason): (1, detail)}


def test_a_parquet_table_without_rows_is_empty(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([], pa.string())})
    (tmp_path / "src").mkdir()
    pq.write_table(table, tmp_path / "src" / "a.parquet")
    txt(tmp_path / "src" / "b.txt")
    assert skipped(prepare_here(tmp_path)) == {("a.parquet", "empty"): (1, "a table without rows")}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string_view()])
def test_texts_of_parquet_are_read_however_they_are_stored(
    tmp_path: Path, kind: pa.DataType
) -> None:
    texts = ["one", "zwölf", "три"]
    table = pa.table(
        {
            "content": pa.array(texts, pa.string()).cast(kind),
            "digest": [bytes([200 + i] * 16) for i in range(3)],
        }
    )
    (tmp_path / "src").mkdir()
    pq.write_table(table, tmp_path / "src" / "a.parquet")
    prepare_here(tmp_path)
    assert texts_of(tmp_path / "set") == sorted(text.encode() for text in texts)


def test_one_json_value_in_gzip_is_a_text_and_lines_of_objects_are_a_table(tmp_path: Path) -> None:
    source = tmp_path / "src"
    value = json.dumps({"modules": [{"name": "fs"}]}, indent=2).encode()
    txt(source / "all.json.gz", gzip.compress(value))
    txt(source / "rows.json.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    prepare([source], tmp_path / "set", PrepareOptions())
    texts = {segments[0]["data"] for segments in documents(tmp_path / "set").values()}
    assert texts == {value, b"one", b"two"}
