"""A shard set is read as it was written, equal documents give equal bytes, and damage is found."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from helpers.sets import SetMaker, audio, image, text
from helpers.source_files import hashes
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.shards.format import INDEX_DTYPE, MAX_SHARDS, SET_MANIFEST
from bytelm.pipelines.shards.reader import ShardSet, header_of, open_set
from bytelm.pipelines.shards.writer import ShardWriter, write_set_manifest

DOCUMENTS = [
    [text(b"call me Ishmael")],
    [text(b"a caption"), image(5, 4)],
    [audio(100, 2)],
    [text(b""), text(b"again"), image(1, 1, 1), audio(3)],
    [Sample("image", Header(width=9, height=8, channels=3), b"\x89PNG", is_file=True)],
]


def stored(shard_set: ShardSet) -> list[list[Sample]]:
    """All documents of a set, in order."""
    documents: list[list[Sample]] = []
    for shard in shard_set.shards:
        first = len(documents)
        for row in shard_set.index(shard):
            if first + row["document"] == len(documents):
                documents.append([])
            documents[-1].append(shard_set.sample(shard, row))
    return documents


def test_a_set_is_read_as_it_was_written(make_set: SetMaker) -> None:
    shard_set = make_set(DOCUMENTS)
    assert stored(shard_set) == DOCUMENTS
    assert [s.name for s in shard_set.shards] == ["train-000000.tar", "train-000001.tar"]
    assert [s.documents for s in shard_set.split("train")] == [3, 2]
    assert shard_set.split("val") == []
    for shard in shard_set.shards:
        shard_set.verify(shard)


def test_the_index_says_what_the_samples_are(make_set: SetMaker) -> None:
    shard_set = make_set(DOCUMENTS, per_shard=9)
    index = shard_set.index(shard_set.shards[0])
    assert index.dtype == INDEX_DTYPE
    assert index["document"].tolist() == [0, 1, 1, 2, 3, 3, 3, 3, 4]
    samples = [s for d in DOCUMENTS for s in d]
    assert index["size"].tolist() == [len(s.data) for s in samples]
    assert [header_of(row) for row in index] == [s.header for s in samples]
    assert index["is_file"].tolist() == [s.is_file for s in samples]
    keys = [shard_set.key(shard_set.shards[0], row) for row in index]
    assert keys == [f"train-{i}" for i in index["document"]]
    assert shard_set.shards[0].bytes == {"text": 29, "image": 65, "audio": 406}


def test_the_same_documents_give_the_same_bytes(make_set: SetMaker) -> None:
    first, second = make_set(DOCUMENTS, "first"), make_set(DOCUMENTS, "second")
    assert hashes(Path(first.location)) == hashes(Path(second.location))
    assert first.root == second.root != make_set(DOCUMENTS[:4], "third").root


def test_the_stock_reader_reads_a_shard(make_set: SetMaker) -> None:
    shard_set = make_set(DOCUMENTS[:3])
    tar = Path(shard_set.location) / "train-000000.tar"
    read = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [r["__key__"] for r in read] == ["train-0", "train-1", "train-2"]
    assert read[0]["txt"] == DOCUMENTS[0][0].data
    assert read[1]["txt"] == DOCUMENTS[1][0].data
    assert read[1]["rgb"] == DOCUMENTS[1][1].data
    assert read[2]["pcm"] == DOCUMENTS[2][0].data
    description = json.loads(read[1]["json"])
    assert description["segments"][1] == {
        "modality": "image",
        "member": "train-1.rgb",
        "source": "train-1",
        "width": 5,
        "height": 4,
        "channels": 3,
    }
    with tarfile.open(tar) as opened:
        names = opened.getnames()
    assert names == [
        "train-0.json",
        "train-0.txt",
        "train-1.json",
        "train-1.txt",
        "train-1.rgb",
        "train-2.json",
        "train-2.pcm",
    ]


def test_nothing_has_its_final_name_before_it_is_whole(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", 0)
    writer.add("a", ["a.txt"], [text(b"a")])
    assert all(p.suffix == ".tmp" for p in tmp_path.iterdir())
    shard = writer.close()
    assert sorted(hashes(tmp_path)) == ["train-000000.npy", "train-000000.tar"]
    with pytest.raises(ValueError, match="interrupted"):
        ShardSet(tmp_path)
    write_set_manifest(tmp_path, [shard], {"files": 1})
    assert ShardSet(tmp_path).report == {"files": 1}


@settings(max_examples=60, deadline=None)
@given(
    position=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    suffix=st.sampled_from(["tar", "npy"]),
)
def test_a_flipped_bit_is_seen(
    tmp_path_factory: pytest.TempPathFactory, position: float, bit: int, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("set")
    writer = ShardWriter(folder, "train", 0)
    for i, samples in enumerate(DOCUMENTS):
        writer.add(f"k{i}", ["x"] * len(samples), samples)
    write_set_manifest(folder, [writer.close()], {})
    path = folder / f"train-000000.{suffix}"
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    path.write_bytes(data)
    shard_set = ShardSet(folder)
    with pytest.raises(DamageError, match="train-000000"):
        shard_set.verify(shard_set.shards[0])


def test_damage_is_seen_when_a_sample_is_read(make_set: SetMaker) -> None:
    shard_set = make_set(DOCUMENTS)
    shard = shard_set.shards[0]
    row = shard_set.index(shard)[2]
    path = Path(shard_set.location) / shard.name
    data = bytearray(path.read_bytes())
    data[int(row["offset"]) + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"train-000000.tar: document train-1 "):
        shard_set.sample(shard, row)
    assert shard_set.sample(shard, shard_set.index(shard)[0]) == DOCUMENTS[0][0]


def test_a_cut_a_missing_and_a_swapped_shard_are_seen(make_set: SetMaker) -> None:
    shard_set = make_set([[text(b"%d" % i)] for i in range(6)], per_shard=2)
    first, second, third = (Path(shard_set.location) / s.name for s in shard_set.shards)
    first.write_bytes(first.read_bytes()[:-512])
    whole = second.read_bytes()
    third.rename(second)
    third.write_bytes(whole)
    for shard in shard_set.shards:
        with pytest.raises(DamageError, match=shard.name):
            ShardSet(shard_set.location).verify(shard)
    third.unlink()
    with pytest.raises(DamageError, match="cannot be opened"):
        ShardSet(shard_set.location).verify(shard_set.shards[2])
    (Path(shard_set.location) / shard_set.shards[0].index_name).unlink()
    with pytest.raises(DamageError, match="cannot be read"):
        ShardSet(shard_set.location).index(shard_set.shards[0])


def test_a_folder_that_is_no_set_is_refused_in_a_line(tmp_path: Path, make_set: SetMaker) -> None:
    with pytest.raises(ValueError, match="no shard set at"):
        ShardSet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"holds no {SET_MANIFEST}"):
        ShardSet(tmp_path)
    (tmp_path / SET_MANIFEST).write_text("[]")
    with pytest.raises(ValueError, match="no manifest of a shard set"):
        ShardSet(tmp_path)

    path = Path(make_set(DOCUMENTS).location) / SET_MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        ShardSet(path.parent)
    manifest["parts"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamageError, match="does not match its checksum"):
        ShardSet(path.parent)


def test_a_local_set_needs_no_home_folder_and_a_remote_one_says_so(
    make_set: SetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HOME is `~` where a container's user has no entry in /etc/passwd."""
    location = make_set(DOCUMENTS).location
    monkeypatch.setenv("HOME", "~")
    assert stored(open_set(str(location), "~/cache")) == DOCUMENTS
    with pytest.raises(ValueError, match=r"no home folder .*: set data\.cache_folder, or HOME"):
        open_set("https://127.0.0.1:1/set", "~/cache")


def test_a_set_can_be_sent_to_another_process(make_set: SetMaker) -> None:
    shard_set = make_set(DOCUMENTS)
    stored(shard_set)
    assert stored(pickle.loads(pickle.dumps(shard_set))) == DOCUMENTS


def test_large_samples_keep_their_offsets(make_set: SetMaker) -> None:
    samples = [
        text(np.random.default_rng(i).bytes(n)) for i, n in enumerate((511, 512, 513, 10**6))
    ]
    shard_set = make_set([[s] for s in samples], per_shard=9)
    assert [d[0].data for d in stored(shard_set)] == [s.data for s in samples]


def test_a_shard_whose_number_has_no_six_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the split train needs more than 1,000,000 shards"):
        ShardWriter(tmp_path, "train", MAX_SHARDS)
    assert list(tmp_path.iterdir()) == []
