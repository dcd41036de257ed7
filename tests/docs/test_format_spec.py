"""The pages on the formats are enough to write a reader: `helpers.spec_reader` is one."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import spec_reader
from helpers.source_files import png, sound, txt

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import EvaluationRows
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.shards.reader import ShardSet

PATCH = 12
ROW = 20 * PATCH
VIEWS = [
    {"text": "utf8", "image": "raster", "audio": "s16be"},
    {"text": "utf8", "image": "planar", "audio": "s16le"},
    {"text": "utf8", "image": "patch", "audio": "u8"},
    {"text": "utf8", "image": "patch", "audio": "mulaw"},
]
EMPTY_PIECES = {"best_fit": {(257, 258), (258,)}, "concat_then_split": set()}
"""Ends of the pieces without payload that the test's documents make in any order of rows."""
FILE_VIEWS = {"text": "file", "image": "file", "audio": "file"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of every length around a patch, images, sounds and pairs; one text of three chunks."""
    folder = tmp_path_factory.mktemp("sources")
    # The last two fill a row but for EOM and EOD, or EOD, which then stand alone in a piece.
    for size in (*range(1, 3 * PATCH), ROW - PATCH, ROW - PATCH - 1):
        txt(folder / f"t{size}.txt", bytes([97 + size % 26]) * size)
    txt(folder / "train" / "long.txt", np.random.default_rng(0).bytes(40_000).replace(b"\0", b"\1"))
    for number in range(6):
        png(folder / "val" / f"image {number}.png", 7 + number, 5 + number, seed=number)
        sound(folder / f"sound{number}.flac", 90 + number, seed=number)
        png(folder / "pairs" / f"{number}.png", 3 + number, 4, seed=50 + number)
        txt(folder / "pairs" / f"{number}.txt", f"picture {number}")
    return folder


def make_set(sources: Path, out: Path, **decode: Any) -> Path:
    prepare([sources], out, PrepareOptions(DecodeOptions(**decode), shard_bytes=30_000))
    return out


@pytest.fixture(scope="module")
def decoded_set(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(sources, tmp_path_factory.mktemp("decoded") / "set")


@pytest.fixture(scope="module")
def file_set(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(sources, tmp_path_factory.mktemp("files") / "set", keep_files=True)


def test_the_reader_shares_no_code_with_the_product() -> None:
    tree = ast.parse(Path(spec_reader.__file__).read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names | {"numpy"}


def test_documents_and_root_hash_follow_from_the_shard_format(
    sources: Path, decoded_set: Path
) -> None:
    documents = spec_reader.read_set(decoded_set)
    assert len(documents) == 3 * PATCH - 1 + 2 + 1 + 6 + 6 + 6
    assert len(list(decoded_set.glob("*.tar"))) > 3
    for segments in documents.values():
        for segment in segments:
            if segment.modality == "text":
                assert segment.data == (sources / segment.source).read_bytes()
    assert spec_reader.read_manifest(decoded_set)["root"] == ShardSet(decoded_set).root
    pairs = [d for d in documents.values() if len(d) == 2]
    assert [[s.modality for s in d] for d in pairs] == [["text", "image"]] * 6


def test_kept_files_follow_from_the_shard_format(sources: Path, file_set: Path) -> None:
    for segments in spec_reader.read_set(file_set).values():
        for segment in segments:
            assert segment.is_file
            assert segment.data == (sources / segment.source).read_bytes()


@pytest.mark.parametrize("views", VIEWS, ids=lambda v: f"{v['image']} {v['audio']}")
@pytest.mark.parametrize("packing", ["best_fit", "concat_then_split"])
def test_rows_follow_from_the_stream_format(
    decoded_set: Path, views: dict[str, str], packing: str
) -> None:
    check_rows(decoded_set, views, packing)


def test_rows_of_kept_files_follow_from_the_stream_format(file_set: Path) -> None:
    check_rows(file_set, FILE_VIEWS, "best_fit")


def check_rows(folder: Path, views: dict[str, str], packing: str) -> None:
    """Every row of an epoch is read by the specification: each payload byte of each document
    stands in one row, under its header, and the scored ids are those of the page."""
    rows = read_rows(folder, views, packing)
    found: Counter[tuple[object, ...]] = Counter()
    for segment in rows:
        identity = (segment.modality, *sorted(segment.fields.items()))
        found.update((*identity, segment.offset + i, b) for i, b in enumerate(segment.payload))
    expected: Counter[tuple[object, ...]] = Counter()
    for document in spec_reader.read_set(folder).values():
        for stored in document:
            payload = spec_reader.payload_of(stored, views[stored.modality], PATCH)
            identity = (stored.modality, *sorted(stored.fields.items()))
            expected.update((*identity, i, b) for i, b in enumerate(payload))
    assert found == expected
    assert any(segment.offset for segment in rows)
    assert {s.ends for s in rows if not s.payload} >= EMPTY_PIECES[packing]


def read_rows(folder: Path, views: dict[str, str], packing: str) -> list[spec_reader.RowSegment]:
    """The segments of all rows of `train`; what the loader says is scored is checked."""
    shard_set = ShardSet(folder)
    config = PlanConfig(row_length=ROW, patch=PATCH, views=views, packing=packing, shuffle_window=2)
    found = []
    for split in ("train", "val", "test"):
        if not shard_set.split(split):
            continue
        plan = Plan([Source(shard_set, split)], config)
        for batch in make_loader(plan, EvaluationRows(plan.rows(0), 4, 0, 1), workers=0):
            for ids, is_scored in zip(batch.ids.tolist(), batch.scored.numpy(), strict=True):
                segments = spec_reader.read_row(ids, PATCH)
                positions = np.concatenate([s.scored for s in segments] or [np.empty(0, int)])
                assert np.flatnonzero(is_scored).tolist() == positions.tolist()
                found += segments
    return found
