"""inspect shows figures, names each damaged shard, and extracts documents as files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
from helpers.sets import SetMaker, audio, image, text
from helpers.web_server import serving
from rich.console import Console

from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.evaluation.documents import documents_by_shard
from bytelm.pipelines.shards.inspection import extract_documents, inspect, set_damage
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import write_set_manifest
from bytelm.pipelines.storage.cache import CacheConfig


def run(
    folder: Path,
    verify: bool = False,
    extract: int | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> tuple[int, str]:
    shown = io.StringIO()
    console = Console(file=shown, width=80)
    status = inspect(
        str(folder), verify=verify, extract=extract, out=out, as_json=as_json, console=console
    )
    return status, shown.getvalue()


def test_figures_of_each_modality_and_split(mixed_set: ShardSet) -> None:
    write_set_manifest(
        Path(mixed_set.location), mixed_set.shards, {"skipped": {"empty": 2, "truncated": 1}}
    )
    status, shown = run(mixed_set.location)
    assert status == 0
    assert mixed_set.root in shown
    assert "13 in train, 3 in val, 0 in test" in shown
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "train image 4 1.2 kB 1 byte 141 bytes 900 bytes" in rows
    assert "val audio 1 300 bytes 300 bytes 300 bytes 300 bytes" in rows
    assert "skipped: 2 empty, 1 truncated" in shown


def test_json_has_every_number_in_full(mixed_set: ShardSet, tmp_path: Path) -> None:
    status, shown = run(mixed_set.location, as_json=True, extract=1, out=tmp_path / "files")
    assert status == 0
    summary = json.loads(shown)
    assert summary["root"] == mixed_set.root
    assert {split: part["documents"] for split, part in summary["splits"].items()} == {
        "train": 13,
        "val": 3,
        "test": 0,
    }
    assert summary["splits"]["train"]["modalities"]["image"] == {
        "segments": 4,
        "bytes": 1 + 192 + 900 + 90,
        "min": 1,
        "median": 141,
        "max": 900,
    }
    assert summary["report"] == mixed_set.report
    assert sorted(summary["extracted"]) == sorted(map(str, (tmp_path / "files").iterdir()))


def test_json_names_the_damage(make_set: SetMaker) -> None:
    shard_set = make_set([[text(b"sea" * 50)]])
    (Path(shard_set.location) / "train-000000.tar").unlink()
    status, shown = run(shard_set.location, verify=True, as_json=True)
    assert status == 1
    [damage] = json.loads(shown)["damage"]
    assert "train-000000.tar" in damage


def test_names_are_printed_as_they_are(make_set: SetMaker, tmp_path: Path) -> None:
    shard_set = make_set([[text(b"sea")]])
    _, shown = run(shard_set.location, extract=1, out=tmp_path / "a [b] :smile:")
    assert "a [b] :smile:" in shown


def test_verify_names_every_damaged_shard(make_set: SetMaker) -> None:
    shard_set = make_set([[text(b"%d" % i * 50)] for i in range(8)], per_shard=2)
    assert set_damage(shard_set) == []
    assert run(shard_set.location, verify=True)[0] == 0

    tar = Path(shard_set.location) / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[1024 + 20] ^= 4
    tar.write_bytes(data)
    (Path(shard_set.location) / "train-000002.npy").write_bytes(b"")
    (Path(shard_set.location) / "train-000003.tar").unlink()
    status, shown = run(shard_set.location, verify=True)
    assert status == 1
    for name in ("train-000001.tar", "train-000002", "train-000003.tar", "1 of 4 shards whole"):
        assert name in shown
    assert "train-000000" not in shown
    with pytest.raises(DamageError, match=r"train-000002\.npy"):
        run(shard_set.location)


def test_extracted_documents_are_files_that_open(tmp_path: Path, make_set: SetMaker) -> None:
    documents = [
        *([text(b"text %d" % i)] for i in range(9)),
        *([image(4 + i, 3, seed=i)] for i in range(9)),
        *([audio(50 + i, seed=i)] for i in range(9)),
        [text(b"caption"), text(b"file"), image(2, 2, 1)],
    ]
    shard_set = make_set(documents)
    status, shown = run(shard_set.location, extract=3, out=tmp_path / "files")
    assert status == 0
    paths = sorted((tmp_path / "files").iterdir())
    assert all(str(p) in shown for p in paths)
    kinds = [p.suffix for p in paths]
    assert {k: kinds.count(k) for k in kinds} == {".txt": 4, ".png": 3, ".wav": 3}
    for path in paths:
        number = int(path.stem.partition("-")[2].partition(".")[0])
        sample = documents[number][int(path.stem.partition(".")[2] or 0)]
        if path.suffix == ".png":
            with PIL.Image.open(path) as opened:
                assert np.asarray(opened).tobytes() == sample.data
        elif path.suffix == ".wav":
            assert soundfile.read(path, dtype="int16")[0].tobytes() == sample.data
        else:
            assert path.read_bytes() == sample.data


def test_extracted_documents_are_spread_over_the_set(tmp_path: Path, make_set: SetMaker) -> None:
    shard_set = make_set([[text(b"%d" % i)] for i in range(20)])
    numbers = sorted(int(p.read_text()) for p in extract_documents(shard_set, 3, tmp_path / "few"))
    assert numbers == [0, 9, 19]
    assert len(extract_documents(shard_set, 99, tmp_path / "all")) == 20


def test_a_cache_of_one_shard_is_enough(tmp_path: Path, make_set: SetMaker) -> None:
    """A single pass over a set has one shard in use at a time."""
    local = make_set([[text(b"%d " % i * 9000)] for i in range(12)], per_shard=2)
    limit = max(shard.size + shard.index_size for shard in local.shards)
    plan_config = PlanConfig(256, 8, {"text": "utf8", "image": "raster", "audio": "s16be"})
    with serving() as web:
        web.objects |= {path.name: path.read_bytes() for path in Path(local.location).iterdir()}
        remote = ShardSet(web.url, CacheConfig(tmp_path / "cache", limit))
        assert set_damage(remote) == []
        names = [
            [p.name for p in extract_documents(s, 9, tmp_path / "files")] for s in (local, remote)
        ]
        assert names[0] == names[1]
        payloads = [
            [document.load(8).payloads[0].tobytes() for shard in shards for document in shard]
            for shards in (
                documents_by_shard(Plan([Source(s)], plan_config)) for s in (local, remote)
            )
        ]
        assert payloads[0] == payloads[1]
        remote.store.close()


def test_wrong_arguments_are_errors(tmp_path: Path, mixed_set: ShardSet) -> None:
    with pytest.raises(ValueError, match="needs --out"):
        run(mixed_set.location, extract=1)
    with pytest.raises(ValueError, match="at least 1"):
        run(mixed_set.location, extract=0, out=tmp_path)
    with pytest.raises(ValueError, match="no shard set"):
        run(tmp_path / "nowhere")
