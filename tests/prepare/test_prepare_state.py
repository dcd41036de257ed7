"""The progress of `prepare`: saved in blocks, so that many shards cost little to save again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.source_files import hashes, small_source

from bytelm.pipelines.prepare import prepare_state
from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.prepare.prepare_state import PREPARE_STATE, PrepareState
from bytelm.pipelines.prepare.set_folder import is_own_file
from bytelm.pipelines.prepare.set_writer import SetWriter
from bytelm.pipelines.shards.format import Shard

FIRST_BLOCK = ".prepare-000000.json"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_state, "BLOCK_SHARDS", 3)


def shard(number: int) -> Shard:
    return Shard(f"train-{number:06d}.tar", "train", 100, "a" * 64, 10, "b" * 64, 1, {"text": 7})


def grown_state(files: dict[str, bytes], shards: int) -> PrepareState:
    """A state that was saved after each shard, and lost a file with each."""
    state = PrepareState("input")
    for number in range(shards):
        state.shards.append(shard(number))
        state.skipped.append(SkippedFile(f"{number}.png", "truncated", "it ends early"))
        state.done += 2
        state.save(files.__setitem__)
    return state


@pytest.mark.parametrize("shards", [0, 2, 3, 8])
def test_what_was_saved_is_loaded(shards: int) -> None:
    files: dict[str, bytes] = {}
    state = grown_state(files, shards)
    state.save(files.__setitem__)
    assert PrepareState.load(files.__getitem__, "input") == state
    assert set(files) == state.file_names
    assert all(map(is_own_file, files))
    assert PrepareState.load(files.__getitem__, "other input") == PrepareState("other input")


def test_a_block_is_written_once() -> None:
    written: list[str] = []
    state = PrepareState("input")
    for number in range(10):
        state.shards.append(shard(number))
        state.save(lambda name, data: written.append(name))
    assert written.count(FIRST_BLOCK) == 1
    assert written.count(PREPARE_STATE) == 10


def test_a_save_does_not_grow_with_what_is_in_blocks() -> None:
    few: dict[str, bytes] = {}
    many: dict[str, bytes] = {}
    grown_state(few, 4)
    grown_state(many, 31)
    assert len(many[PREPARE_STATE]) < len(few[PREPARE_STATE]) + 9 * 80


def test_a_loaded_state_goes_on_with_all_its_files_written_again() -> None:
    files: dict[str, bytes] = {}
    state = grown_state(files, 7)
    loaded = PrepareState.load(files.__getitem__, "input")
    again: dict[str, bytes] = {}
    loaded.save(again.__setitem__)
    assert PrepareState.load(again.__getitem__, "input") == state


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_damaged_or_missing_block_is_a_fresh_start(damage: bytes | None) -> None:
    files: dict[str, bytes] = {}
    grown_state(files, 4)
    if damage is None:
        del files[FIRST_BLOCK]
    else:
        files[FIRST_BLOCK] = damage

    def read(name: str) -> bytes:
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    assert PrepareState.load(read, "input") == PrepareState("input")


def test_an_interrupted_prepare_goes_on_after_its_blocks_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_source(tmp_path / "source")
    options = PrepareOptions(shard_bytes=5_000)
    prepare([source], tmp_path / "whole", options)
    out = tmp_path / "out"

    def stop(writer: SetWriter) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SetWriter, "close_shards", stop)
        with pytest.raises(OSError, match="disk is full"):
            prepare([source], out, options)
    names = [shard["name"] for shard in json.loads((out / FIRST_BLOCK).read_bytes())["shards"]]
    inodes = [(out / name).stat().st_ino for name in names]
    prepare([source], out, options)
    assert [(out / name).stat().st_ino for name in names] == inodes
    assert hashes(out) == hashes(tmp_path / "whole")
