"""Rows are counted once: the counts stay with the set, and none but its own are taken."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import spec_reader
from helpers.commands import status, write_config
from helpers.sets import SetMaker, audio, image, text
from helpers.web_server import serving

from bytelm.pipelines.data import counting, kept_counts
from bytelm.pipelines.data.counting import ShardTable, count_split
from bytelm.pipelines.data.kept_counts import counts_name, row_table
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source, open_plan
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import write_set_manifest
from bytelm.pipelines.storage.cache import CacheConfig
from bytelm.pipelines.storage.destination import open_destination

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
CONFIG = PlanConfig(row_length=256, patch=8, views=VIEWS)
Spoiler = Callable[[bytes], bytes]


def equal(one: ShardTable, other: ShardTable) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def whole(mixed_set: ShardSet) -> ShardSet:
    """A set with its counts of train."""
    open_plan([Source(mixed_set)], CONFIG)
    return mixed_set


@pytest.fixture
def refuse_counting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it makes an error of every shard that is packed to count its rows."""

    def refuse(*_: object) -> None:
        raise AssertionError("a shard was packed")

    return lambda: monkeypatch.setattr(counting, "count_rows", refuse)


def counts_of(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob("counts-*"))


def test_a_second_start_packs_no_shard_and_has_the_same_rows(
    whole: ShardSet, refuse_counting: Callable[[], None]
) -> None:
    refuse_counting()
    plan = open_plan([Source(ShardSet(whole.location))], CONFIG)
    assert len(counts_of(whole.location)) == 1
    with pytest.raises(AssertionError, match="a shard was packed"):
        Plan([Source(whole)], CONFIG)
    assert plan.tables[0].rows.min() > 0


def test_kept_counts_are_those_of_the_shards(whole: ShardSet) -> None:
    kept = open_plan([Source(whole)], CONFIG)
    counted = Plan([Source(whole)], CONFIG)
    assert equal(kept.tables[0], counted.tables[0])
    assert kept.rows(0) == counted.rows(0)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"row_length": 264},
        {"patch": 16},
        {"packing": "concat_then_split"},
        {"pair_order": "drawn"},
        {"views": {**VIEWS, "audio": "u8"}},
    ],
    ids=str,
)
def test_other_options_have_counts_of_their_own(whole: ShardSet, change: dict[str, Any]) -> None:
    config = replace(CONFIG, **change)
    assert equal(row_table(whole, "train", config), count_split(whole, "train", config))
    assert len(counts_of(whole.location)) == 2


def test_what_counting_does_not_read_shares_the_counts(
    make_set: SetMaker, refuse_counting: Callable[[], None]
) -> None:
    """The shuffle window, weights, and views of modalities that the split lacks."""
    shard_set = make_set([[text(b"one")], [text(b"two" * 90)]])
    row_table(shard_set, "train", CONFIG)
    refuse_counting()
    views = {**VIEWS, "image": "planar", "audio": "mulaw"}
    config = replace(CONFIG, shuffle_window=3, views=views)
    open_plan([Source(shard_set, weight=2.0)], config)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data[:200] + b"\7" + data[201:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ],
    ids=["cut off", "empty", "changed", "changed checksum"],
)
def test_damaged_counts_are_replaced(whole: ShardSet, spoil: Spoiler) -> None:
    (path,) = counts_of(whole.location)
    data = path.read_bytes()
    path.write_bytes(spoil(data))
    row_table(whole, "train", CONFIG)
    assert path.read_bytes() == data


def test_counts_of_another_set_or_split_are_not_taken_under_any_name(
    whole: ShardSet, make_set: SetMaker
) -> None:
    (path,) = counts_of(whole.location)
    other = make_set([[text(b"other" * n)] for n in range(1, 30)], "other", val=[[audio(30)]])
    for shard_set, split in ((other, "train"), (other, "val"), (whole, "val")):
        target = Path(shard_set.location) / counts_name(shard_set, split, CONFIG)
        target.write_bytes(path.read_bytes())
        found = row_table(shard_set, split, CONFIG)
        assert equal(found, count_split(shard_set, split, CONFIG))


def test_a_set_that_is_written_anew_loses_counts_of_its_former_content(whole: ShardSet) -> None:
    folder, shards = Path(whole.location), list(whole.shards)
    write_set_manifest(folder, shards, {"report": "another"})
    assert len(counts_of(folder)) == 1, "the same content"
    write_set_manifest(folder, shards[:-1], {})
    assert not counts_of(folder)


def test_counts_of_a_set_that_cannot_be_written_are_kept_in_the_cache_folder(
    mixed_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_atomic, refused = kept_counts.write_atomic, [Path(mixed_set.location)]

    def write(path: Path, data: bytes) -> None:
        if path.parent in refused:
            raise PermissionError(13, "Permission denied", str(path))
        write_atomic(path, data)

    monkeypatch.setattr(kept_counts, "write_atomic", write)
    cache = tmp_path / "cache"
    row_table(mixed_set, "train", CONFIG, str(cache))
    assert len(counts_of(cache)) == 1
    assert not counts_of(mixed_set.location)
    assert capsys.readouterr().err == ""
    refused.append(cache)
    row_table(mixed_set, "val", CONFIG, str(cache))
    assert "are not kept, each start counts again: [Errno 13]" in capsys.readouterr().err


def test_counts_of_a_remote_set_are_fetched_or_kept_in_the_cache_folder(
    whole: ShardSet, tmp_path: Path, refuse_counting: Callable[[], None]
) -> None:
    cache = tmp_path / "cache"
    with serving() as web:
        web.objects |= {path.name: path.read_bytes() for path in Path(whole.location).iterdir()}
        remote = ShardSet(web.url, CacheConfig(cache, 1 << 30))
        fetched = row_table(remote, "train", CONFIG, str(cache))
        assert not counts_of(cache)
        row_table(remote, "val", CONFIG, str(cache))
        assert len(counts_of(cache)) == 1
        refuse_counting()
        for split in ("train", "val"):
            row_table(remote, split, CONFIG, str(cache))
    assert equal(fetched, row_table(whole, "train", CONFIG))


@pytest.fixture
def many_shards(make_set: SetMaker, monkeypatch: pytest.MonkeyPatch) -> ShardSet:
    """Fifty shards, of which a process counts four at once."""
    monkeypatch.setattr(counting, "SHARDS_AT_ONCE", 4)
    return make_set([[text(bytes(n % 400 + 1))] for n in range(150)], "many")


@pytest.mark.parametrize("processes", [2, 3, 20])
def test_any_number_of_processes_counts_the_same(many_shards: ShardSet, processes: int) -> None:
    alone = count_split(many_shards, "train", CONFIG)
    assert equal(count_split(many_shards, "train", CONFIG, processes), alone)


def test_a_mistake_that_a_counting_process_finds_is_raised(make_set: SetMaker) -> None:
    shard_set = make_set([[image(3, 2, channels=3)]], "images")
    config = replace(CONFIG, views={**VIEWS, "image": "file"})
    with pytest.raises(ValueError, match="holds decoded samples; prepare it with --keep-files"):
        count_split(shard_set, "train", config, processes=2)


def test_a_counting_process_that_dies_is_named(
    many_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(counting, "count_rows", die)
    with pytest.raises(RuntimeError, match=r"which counted rows, ended with status -9"):
        count_split(many_shards, "train", CONFIG, processes=2)


SLOW_COUNT = """
import os, sys, time
from bytelm.pipelines.data import counting
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.runtime.signals import end_at_sigterm
from bytelm.pipelines.shards.reader import ShardSet

def wait(*_):
    os.write(1, b"counting\\n")  # whole, also where both processes write at once
    time.sleep(600)

end_at_sigterm()
counting.count_rows = wait
counting.SHARDS_AT_ONCE = 4
views = {"text": "utf8", "image": "raster", "audio": "s16be"}
counting.count_split(ShardSet(sys.argv[1]), "train", PlanConfig(256, 8, views), 2)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_counting_ends_at_a_signal_with_all_its_processes(
    many_shards: ShardSet, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_COUNT, many_shards.location],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["counting\n"] * 2
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.send_signal(number)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a counting process lives on"
        time.sleep(0.05)


def test_index_counts_for_a_config_and_changes_nothing_else(
    mixed_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(mixed_set.location)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=1, global_batch=1)
    assert status(["index", str(folder), "--count", str(config)]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(folder / counts_name(mixed_set, s, CONFIG)) for s in ("train", "val")]
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == [path.name for path in counts_of(folder)]
    assert len(counts_of(folder)) == 2


def test_index_writes_counts_to_a_url(
    mixed_set: ShardSet, tmp_path: Path, refuse_counting: Callable[[], None]
) -> None:
    url, cache = f"memory://bucket/{tmp_path.name}", tmp_path / "cache"
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=1, global_batch=1)
    values = yaml.safe_load(config.read_text())
    values["data"]["cache_folder"] = str(cache)
    config.write_text(yaml.safe_dump(values))
    with open_destination(url) as destination:
        for path in Path(mixed_set.location).iterdir():
            destination.upload(path, path.name)
        for _ in range(2):
            assert status(["index", url, "--count", str(config)]) == 0
            refuse_counting()
        names = {counts_name(mixed_set, split, CONFIG) for split in ("train", "val")}
        assert {name for name in destination.list() if name.startswith("counts-")} == names
    remote = ShardSet(url, CacheConfig(cache, 1 << 30))
    assert row_table(remote, "train", CONFIG, str(cache)).rows.min() > 0
    assert not counts_of(cache)


def test_prepare_counts_for_a_config(
    mixed_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, source = tmp_path / "out", tmp_path / "source"
    for split in ("train", "val"):
        (source / split).mkdir(parents=True)
        (source / split / "a.txt").write_text("a whale")
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=1, global_batch=1)
    line = ["prepare", str(source), "--out", str(out), "--count-for", str(config)]
    assert status([*line, "--part", "0/2"]) == 2
    assert "after bytelm merge run" in capsys.readouterr().err
    for _ in range(2):
        assert status(line) == 0
        assert len(counts_of(out)) == 2
        printed = capsys.readouterr().out
        assert all(str(path) in printed for path in counts_of(out))
    assert status(["index", str(out)]) == 0
    assert len(counts_of(out)) == 2, "the content is the same"


def test_a_reader_written_from_the_page_finds_the_same_counts(whole: ShardSet) -> None:
    options = {"views": VIEWS, "context": 256, "patch": 8, "seed": 0}
    rows, cost = spec_reader.read_counts(Path(whole.location), "train", options)
    assert equal(ShardTable(rows, cost), count_split(whole, "train", CONFIG))
    (path,) = counts_of(whole.location)
    array = np.load(io.BytesIO(path.read_bytes()))
    assert (array.dtype, array.shape) == (np.dtype("<i8"), (2, len(whole.split("train"))))
