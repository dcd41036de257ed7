"""Random damage of every kind: each byte is delivered right, or masked and counted, or an error
names the file. `bytelm index` makes a set's indexes again, and only from whole tars."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

import fsspec
import numpy as np
import pytest
from helpers.sets import SetMaker, audio, image, text
from helpers.web_server import be_impatient

from bytelm.modalities import framing
from bytelm.modalities.base import Sample
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import EvaluationRows
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.shards.format import SET_MANIFEST
from bytelm.pipelines.shards.inspection import set_damage
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.reindex import reindex
from bytelm.pipelines.storage.cache import CacheConfig

SEEDS = [*range(12), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(12, 100))]
Generator = np.random.Generator
Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)


def documents(rng: Generator) -> list[list[Sample]]:
    """Documents of each modality of 1 to some 60,000 bytes, and a pair."""
    documents: list[list[Sample]] = []
    for number in range(12):
        size = int(np.exp(rng.uniform(0, np.log(60_000))))
        side = max(1, round((size / 3) ** 0.5))
        kinds = [text(rng.bytes(size)), image(side, side, seed=number), audio(size // 2 + 1)]
        documents.append([kinds[number % 3]])
    documents[2:2] = [[text(rng.bytes(50_000)), image(90, 80, seed=77)], [text(b"!")]]
    return documents


def plan_of(shard_set: ShardSet, seed: int) -> Plan:
    """A plan with packing and views drawn by the seed. None of the views changes the byte count."""
    rng = np.random.default_rng(seed)
    config = PlanConfig(
        row_length=4080,
        patch=24,
        views={
            "text": "utf8",
            "image": str(rng.choice(["raster", "planar", "patch"])),
            "audio": str(rng.choice(["s16le", "s16be"])),
        },
        seed=seed,
        packing=str(rng.choice(["best_fit", "concat_then_split"])),
        pair_order=str(rng.choice(["stored", "drawn"])),
        shuffle_window=2,
    )
    return Plan([Source(shard_set)], config)


def epoch(plan: Plan, mask_damage: bool, workers: int = 0) -> list[Batch]:
    """All rows of an epoch, each a batch."""
    return list(make_loader(plan, EvaluationRows(plan.rows(0), 1, 0, 1), workers, mask_damage))


def compare(found: list[Batch], expected: list[Batch]) -> int:
    """Check that every id is the expected one, or unscored PAD where damage is reported.

    Returns the payload bytes that were masked.
    """
    masked = 0
    assert len(found) == len(expected)
    for batch, whole in zip(found, expected, strict=True):
        reported = sum(d.size for d in batch.damage)
        same = batch.ids.long() == whole.ids.long()
        assert (batch.ids.long()[~same] == framing.PAD).all()
        assert not batch.scored[~same].any()
        assert (batch.scored[same] <= whole.scored[same]).all()
        assert same[batch.payload].all()
        assert (whole.payload.sum() - batch.payload.sum()).item() == reported
        assert same.all() or reported
        assert batch.document.equal(whole.document)
        assert batch.modality.equal(whole.modality)
        masked += reported
    return masked


def total_bytes(shard_set: ShardSet) -> int:
    return sum(sum(shard.bytes.values()) for shard in shard_set.split("train"))


# Kinds of damage. Each changes the files of a set, and returns the names that an error may give.


def _rewritten(tar: bytes, members: Callable[[list[tuple[str, bytes]]], None]) -> bytes:
    """A tar after `members` has changed the list of its members."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as old:
        content = [(m.name, cast(IO[bytes], old.extractfile(m)).read()) for m in old]
    members(content)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    return file.getvalue()


def flip(files: Files, rng: Generator) -> set[str]:
    name = _any(files, rng)
    data = bytearray(files[name])
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    files[name] = bytes(data)
    return {name}


def cut(files: Files, rng: Generator) -> set[str]:
    name = _any(files, rng)
    files[name] = files[name][: rng.integers(len(files[name]))]
    return {name}


def empty(files: Files, rng: Generator) -> set[str]:
    name = _any(files, rng)
    files[name] = b""
    return {name}


def missing(files: Files, rng: Generator) -> set[str]:
    name = _any(files, rng)
    del files[name]
    return {name}


def zeroed(files: Files, rng: Generator) -> set[str]:
    name = _any(files, rng)
    start = int(rng.integers(len(files[name])))
    zeros = bytes(len(files[name][start : start + 1024]))
    files[name] = files[name][:start] + zeros + files[name][start + 1024 :]
    return {name}


def swapped(files: Files, rng: Generator) -> set[str]:
    one, two = (str(n) for n in rng.choice(_tars(files), 2, replace=False))
    files[one], files[two] = files[two], files[one]
    return {one, two}


def member_removed(files: Files, rng: Generator) -> set[str]:
    name = str(rng.choice(_tars(files)))
    files[name] = _rewritten(files[name], lambda m: m.pop(rng.integers(len(m))) and None)
    return {name}


def member_duplicated(files: Files, rng: Generator) -> set[str]:
    name = str(rng.choice(_tars(files)))
    files[name] = _rewritten(files[name], lambda m: m.insert(0, m[rng.integers(len(m))]))
    return {name}


def wrong_index(files: Files, rng: Generator) -> set[str]:
    names = [name.replace(".tar", ".npy") for name in _tars(files)]
    one, two = (str(n) for n in rng.choice(names, 2, replace=False))
    files[one] = files[two]
    return {one}


DAMAGE = (
    *(flip, flip, flip, cut, cut, empty, missing, zeroed, zeroed, swapped),
    *(member_removed, member_duplicated, wrong_index),
)


def _tars(files: Files) -> list[str]:
    return sorted(name for name in files if name.endswith(".tar"))


def _any(files: Files, rng: Generator) -> str:
    """The name of a tar, an index or the manifest, each kind equally likely."""
    suffix = rng.choice([".tar", ".npy", ".json"])
    return str(rng.choice(sorted(name for name in files if name.endswith(suffix))))


def read_files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_files(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_damage_delivers_a_wrong_byte(make_set: SetMaker, tmp_path: Path, seed: int) -> None:
    """One kind of damage in a local set or in a remote one."""
    rng = np.random.default_rng(1000 + seed)
    sound = make_set(documents(rng))
    expected = epoch(plan_of(sound, seed), False)
    assert sum(int(b.payload.sum()) for b in expected) == total_bytes(sound)
    assert set_damage(sound) == []

    before = read_files(Path(sound.location))
    files = dict(before)
    names = DAMAGE[seed % len(DAMAGE)](files, rng)
    location = f"memory://damaged-{seed}" if seed % 4 == 3 else str(tmp_path / "damaged")
    if location.startswith("memory"):
        fsspec.filesystem("memory").pipe({f"/damaged-{seed}/{n}": d for n, d in files.items()})
    else:
        write_files(Path(location), files)
    cache = CacheConfig(tmp_path / "cache", 10**8)

    for mask_damage in (True, False):
        refusal = ""
        try:
            plan = plan_of(ShardSet(location, cache), seed)
            found = epoch(plan, mask_damage, workers=2 if seed % 10 == 0 else 0)
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert any(name in refusal for name in names), refusal
            continue
        masked = compare(found, expected)
        delivered = sum(int(b.payload.sum()) for b in found)
        assert delivered + masked == total_bytes(sound)
        assert mask_damage or not masked

    if files != before:
        try:
            reported = "\n".join(set_damage(ShardSet(location, cache)))
        except ValueError as error:
            reported = str(error)
        assert any(name in reported for name in names), reported


def spoil_flip(data: bytes, other: bytes, rng: Generator) -> bytes:
    position = int(rng.integers(len(data)))
    return data[:position] + bytes([data[position] ^ (1 << rng.integers(8))]) + data[position + 1 :]


def spoil_cut(data: bytes, other: bytes, rng: Generator) -> bytes:
    return data[: rng.integers(len(data))]


def spoil_stale(data: bytes, other: bytes, rng: Generator) -> bytes:
    return other


@pytest.mark.parametrize("spoil", [spoil_flip, spoil_cut, spoil_stale])
@pytest.mark.parametrize("mask_damage", [True, False])
@pytest.mark.parametrize("in_use", [False, True])
def test_a_spoilt_cache_delivers_no_wrong_byte(
    make_set: SetMaker,
    tmp_path: Path,
    spoil: Callable[[bytes, bytes, Generator], bytes],
    mask_damage: bool,
    in_use: bool,
) -> None:
    """Every cached file is spoilt in turn. A process that starts fetches it again. For a process
    that has verified and opened it, it is damage like that of a local file."""
    seed = 5
    rng = np.random.default_rng(seed)
    sound = make_set(documents(rng))
    expected = epoch(plan_of(sound, seed), False)
    remote = f"memory://cached-{tmp_path.name}"
    files = read_files(Path(sound.location))
    fsspec.filesystem("memory").pipe({f"/{remote[9:]}/{n}": d for n, d in files.items()})
    cache = CacheConfig(tmp_path / "cache", 10**8)
    plan = plan_of(ShardSet(remote, cache), seed)
    assert compare(epoch(plan, mask_damage), expected) == 0
    whole = {path: path.read_bytes() for path in _objects(cache.folder)}
    assert len(whole) == 2 * len(sound.shards) + 1, "with the manifest's part"
    others = [*list(whole.values())[1:], b""]
    for (path, data), other in zip(whole.items(), others, strict=True):
        path.write_bytes(spoil(data, other, rng))
        refusal, masked = "", 0
        try:
            if not in_use:
                plan = plan_of(ShardSet(remote, cache), seed)
            masked = compare(epoch(plan, mask_damage), expected)
        except DamageError as error:
            refusal = str(error)
        assert in_use or not refusal
        assert not refusal or any(f"{remote}/{kind}-" in refusal for kind in ("train", "manifest"))
        assert not masked or (in_use and mask_damage)
        path.write_bytes(data)


def _objects(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if len(path.name) == 64)


def test_a_change_of_any_byte_of_the_manifest_is_named(make_set: SetMaker) -> None:
    """One bit of each byte in turn, and a cut at each. No other hash covers counts and sizes."""
    folder = Path(make_set(documents(np.random.default_rng(4))).location)
    data = (folder / SET_MANIFEST).read_bytes()
    bits = np.random.default_rng(4).integers(8, size=len(data))
    for position, bit in enumerate(bits.tolist()):
        flipped = data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]
        for changed in (flipped, data[:position]):
            (folder / SET_MANIFEST).write_bytes(changed)
            with pytest.raises(ValueError, match=SET_MANIFEST):
                ShardSet(folder)


def test_an_index_is_made_again_from_tars_alone(make_set: SetMaker, tmp_path: Path) -> None:
    sound = make_set(documents(np.random.default_rng(3)), val=[[text(b"val")]])
    folder = Path(sound.location)
    before = read_files(folder)
    for name in before:
        if not name.endswith(".tar"):
            (folder / name).unlink()
    assert reindex(folder) == sound.root
    again = ShardSet(folder)
    assert again.shards == sound.shards
    after = read_files(folder)
    assert {n: d for n, d in after.items() if n != SET_MANIFEST} == {
        n: d for n, d in before.items() if n != SET_MANIFEST
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_no_index_is_made_from_a_tar_that_is_not_whole(
    make_set: SetMaker, tmp_path: Path, seed: int
) -> None:
    """A tar that is cut, has a broken header, lacks a member, has one twice, or holds other files.
    A flipped bit in an unused header field, or in a payload, shows in the root hash only."""
    rng = np.random.default_rng(seed)
    sound = make_set(documents(rng))
    folder, files = Path(sound.location), read_files(Path(sound.location))
    name = str(rng.choice(_tars(files)))
    tar = files[name]
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        members = opened.getmembers()
    member = members[rng.integers(len(members))]
    changes: list[bytes] = [
        tar[: rng.integers(len(tar))],
        tar[: member.offset],
        tar[: member.offset] + bytes(512) + tar[member.offset + 512 :],
        _rewritten(tar, lambda m: m.pop(rng.integers(len(m))) and None),
        _rewritten(tar, lambda m: m.append(m[rng.integers(len(m))])),
        _rewritten(tar, lambda m: m.insert(0, ("a.txt", b"foreign"))),
        _rewritten(tar, lambda m: m.insert(0, ("a.json", b'{"segments": [{"modality": 1}]}'))),
        _rewritten(tar, lambda m: m.insert(0, ("a.json", rng.bytes(40)))),
    ]
    for changed in changes:
        (folder / name).write_bytes(changed)
        with pytest.raises(DamageError, match=name):
            reindex(folder)
    position = member.offset + int(rng.integers(512))
    (folder / name).write_bytes(
        tar[:position] + bytes([tar[position] ^ (1 << rng.integers(8))]) + tar[position + 1 :]
    )
    try:
        root, refusal = reindex(folder), ""
    except DamageError as error:
        root, refusal = "", str(error)
    if root:
        assert root != sound.root
        index = name.replace(".tar", ".npy")
        assert (folder / index).read_bytes() == files[index]
    else:
        assert name in refusal
