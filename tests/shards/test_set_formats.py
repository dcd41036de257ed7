"""Sets of format 1 and 2 are read like those of format 3, which are opened without their parts."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.sets import SetMaker, text

from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.shards import manifest
from bytelm.pipelines.shards.format import SET_MANIFEST, Shard
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.reindex import reindex
from bytelm.pipelines.shards.writer import write_set_manifest

DOCUMENTS = [[text(b"document %d" % number)] for number in range(10)]


def lower_format(shard_set: ShardSet, version: int) -> ShardSet:
    """Replace a set's manifest by one of format 1 or 2."""
    folder = Path(shard_set.location)
    shards = [asdict(shard) for shard in shard_set.shards]
    values = {"format": version, "root": shard_set.root, "shards": shards, "report": {}}
    content = json.dumps(values, indent=1).removesuffix("\n}")
    digest = hashlib.sha256(content.encode()).hexdigest()
    checksum = f',\n "sha256": "{digest}"' if version > 1 else ""
    (folder / SET_MANIFEST).write_text(f"{content}{checksum}\n}}\n")
    for path in folder.glob("manifest-*.npy"):
        path.unlink()
    return ShardSet(folder)


@pytest.mark.parametrize("version", [1, 2])
def test_older_formats_are_read_and_raised_with_the_same_root(
    make_set: SetMaker, version: int
) -> None:
    newest = make_set(DOCUMENTS, val=DOCUMENTS[:2])
    expected = list(newest.shards)
    old = lower_format(newest, version)
    assert (list(old.shards), old.root) == (expected, newest.root)
    assert old.split("val") == expected[4:]
    assert old.counts("train") == newest.counts("train")
    assert reindex(Path(old.location)) == newest.root
    assert json.loads((Path(old.location) / SET_MANIFEST).read_bytes())["format"] == 3
    assert list(ShardSet(old.location).shards) == expected


def test_an_edited_manifest_of_format_1_is_damage(make_set: SetMaker) -> None:
    folder = Path(lower_format(make_set(DOCUMENTS), 1).location)
    data = (folder / SET_MANIFEST).read_text()
    (folder / SET_MANIFEST).write_text(data.replace("train-000001", "train-000007"))
    with pytest.raises(DamageError, match="does not match"):
        ShardSet(folder)


def test_shards_are_found_over_the_borders_of_parts(
    make_set: SetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "PART_SHARDS", 3)
    whole = make_set(DOCUMENTS, per_shard=1, val=DOCUMENTS[:4])
    assert len(list(Path(whole.location).glob("manifest-*.npy"))) == 5
    names = [f"train-{n:06d}.tar" for n in range(10)] + [f"val-{n:06d}.tar" for n in range(4)]
    assert [shard.name for shard in whole.shards] == names
    assert [shard.name for shard in whole.split("val")[1:3]] == names[11:13]
    assert whole.shards[-1].name == names[-1]
    assert list(pickle.loads(pickle.dumps(whole)).shards) == list(whole.shards)


def test_a_set_is_opened_without_its_parts_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    """10,000 shards, whose three parts are gone, changed, and whole."""
    shards = [
        Shard(f"train-{n:06d}.tar", "train", 1, f"{n:064x}", 2, f"{n + 1:064x}", 3, {"text": 4})
        for n in range(10_000)
    ]
    write_set_manifest(tmp_path, shards, {})
    parts = json.loads((tmp_path / SET_MANIFEST).read_bytes())["parts"]
    assert [part["shards"] for part in parts] == [4096, 4096, 1808]
    gone, changed = (tmp_path / part["name"] for part in parts[:2])
    gone.unlink()
    changed.write_bytes(changed.read_bytes()[:-1] + b"\1")
    shard_set = ShardSet(tmp_path)
    assert shard_set.counts("train").documents == 30_000
    assert shard_set.shards[9_999].sha256 == f"{9_999:064x}"
    with pytest.raises(DamageError, match=f"{gone.name}, a part of the manifest, cannot be read"):
        shard_set.shards[0]
    with pytest.raises(DamageError, match=f"{changed.name} is not the part"):
        shard_set.shards[5_000]
