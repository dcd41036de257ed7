"""Shares of a merge, written at any time and in any order, give the bytes of one process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.commands import status
from helpers.source_files import hashes, small_source

from bytelm.pipelines.prepare import merge, work_items
from bytelm.pipelines.prepare.assembly import ShardRecipe, write_shard
from bytelm.pipelines.prepare.merge import merge_parts, merge_share
from bytelm.pipelines.prepare.parts import prepare_part
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.prepare.set_folder import PARTS_FOLDER, held_folder
from bytelm.pipelines.shards.format import Shard

OPTIONS = PrepareOptions(shard_bytes=12_000)
SHARES = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the set `whole` of one process, and `out`, whose parts are decoded."""
    folder = tmp_path_factory.mktemp("made")
    source = small_source(folder / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_items, "ITEM_DOCUMENTS", 4)  # so that some lie in shards of two shares
        prepare([source], folder / "whole", OPTIONS)
        for part in range(SHARES):
            prepare_part([source], folder / "out", OPTIONS, part, SHARES)
    assert len(list((folder / "whole").glob("*.tar"))) > 2 * SHARES
    return folder


@pytest.fixture(autouse=True)
def small_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the input as `made` has."""
    monkeypatch.setattr(work_items, "ITEM_DOCUMENTS", 4)


@pytest.fixture
def whole(made: Path) -> Path:
    """The set of one process."""
    return made / "whole"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A set whose parts are decoded."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def members(out: Path) -> list[str]:
    return sorted(path.name for path in (out / PARTS_FOLDER).glob("*.members"))


@pytest.mark.parametrize("order", [(2, 0, 1), (1,), (0, 2)])
def test_shares_in_any_order_give_the_bytes_of_one_process(
    out: Path, whole: Path, order: Sequence[int]
) -> None:
    shares = [merge_share(out, share, SHARES) for share in order]
    assert all(share.made and share.shards for share in shares)
    assert len(list(out.glob("*.tar"))) == sum(share.shards for share in shares)
    assert not (out / "manifest.json").exists()
    merge_parts(out)
    assert hashes(out) == hashes(whole)
    assert not merge_share(out, 0, SHARES).made


def test_shares_at_once_do_not_disturb_each_other(out: Path, whole: Path) -> None:
    threads = [threading.Thread(target=merge_share, args=(out, n, SHARES)) for n in range(SHARES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(out.glob("*.tar"))) == len(list(whole.glob("*.tar")))
    merge_parts(out)
    assert hashes(out) == hashes(whole)


def test_a_share_removes_the_members_that_no_other_share_needs(out: Path) -> None:
    before = members(out)
    merge_share(out, 1, SHARES)
    assert 0 < len(members(out)) < len(before)
    merge_share(out, 0, SHARES)
    merge_share(out, 2, SHARES)
    assert len(members(out)) < SHARES


def test_an_interrupted_share_goes_on(
    out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def stop_at_the_second(recipe: ShardRecipe, folder: Path, out: Path) -> Shard:
        written.append(recipe.name)
        if len(written) == 2:
            raise OSError("the disk is full")
        return write_shard(recipe, folder, out)

    monkeypatch.setattr(merge, "write_shard", stop_at_the_second)
    with pytest.raises(OSError, match="disk is full"):
        merge_share(out, 0, SHARES)
    with open(out / PARTS_FOLDER / "merged-0.jsonl", "a") as journal:
        journal.write('{"name": "train-0')  # a line that a kill has cut off
    merge_share(out, 0, SHARES)
    assert written.count(written[0]) == 1
    merge_parts(out)
    assert hashes(out) == hashes(whole)


def test_shares_that_are_none_and_that_run_already_are_refused(out: Path) -> None:
    with pytest.raises(ValueError, match="decoded in 3 parts, and has as many shares: 1/2 is none"):
        merge_share(out, 1, 2)
    lock = out / PARTS_FOLDER / "merge-0.lock"
    with held_folder(lock, "share"), pytest.raises(ValueError, match="another merge of share 0/3"):
        merge_share(out, 0, SHARES)
    with held_folder(out, "merge"), pytest.raises(ValueError, match="another merge of"):
        merge_share(out, 0, SHARES)
    with (
        held_folder(out, "merge", is_shared=True),
        pytest.raises(ValueError, match="another merge"),
    ):
        merge_parts(out)


def test_a_shard_that_was_changed_is_named(out: Path) -> None:
    merge_share(out, 0, SHARES)
    changed = min(out.glob("*.tar"))
    changed.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{changed.name} was changed since it was merged"):
        merge_parts(out)


def test_the_command_writes_a_share_and_says_what_comes_next(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(["merge", str(out), "--part", "0/3"]) == 0
    assert "share 0/3, " in (printed := capsys.readouterr().out)
    assert "when all shares are there: bytelm merge" in printed
