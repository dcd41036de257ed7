"""A set that is prepared in parts and merged has the bytes of one that one process made."""

from __future__ import annotations

import errno
import json
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from helpers.source_files import hashes, small_source, txt
from rich.console import Console

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare import merge, parts, piece_files, work_items
from bytelm.pipelines.prepare.assembly import ShardRecipe, write_shard
from bytelm.pipelines.prepare.container_reader import ContainerReader
from bytelm.pipelines.prepare.merge import merge_parts
from bytelm.pipelines.prepare.parts import prepare_part
from bytelm.pipelines.prepare.piece_files import summary_path
from bytelm.pipelines.prepare.prepare import PrepareInput, PrepareOptions, list_input, prepare
from bytelm.pipelines.prepare.scan import local_source
from bytelm.pipelines.prepare.set_folder import PARTS_FOLDER, held_folder, open_parts_folder
from bytelm.pipelines.prepare.staged_input import stage_input
from bytelm.pipelines.shards.format import Shard

OPTIONS = PrepareOptions(shard_bytes=20_000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files, a tar of the same kinds, a JSONL and a Parquet table, and files that are skipped."""
    folder = small_source(tmp_path / "source")
    with tarfile.open(folder / "more.tar", "w") as tar:
        for path in sorted((folder / "pairs").iterdir()):
            tar.add(path, f"in tar {path.name}")
    rows = [{"text": f"row {i} " * (i % 40 + 1)} for i in range(300)]
    lines = [json.dumps(row) for row in rows]
    lines[5] = "{broken"
    txt(folder / "rows.jsonl", "\n".join(lines))
    texts = pa.table({"text": [f"group {i} " * 9 for i in range(200)] + [""]})
    pyarrow.parquet.write_table(texts, folder / "rows.parquet", row_group_size=50)
    txt(folder / "bad.png", b"\x89PNG\r\n\x1a\n" + bytes(50))
    return folder


@pytest.fixture(autouse=True)
def small_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the input to some twenty items, and the items to several pieces."""
    monkeypatch.setattr(work_items, "ITEM_DOCUMENTS", 5)
    monkeypatch.setattr(work_items, "ITEM_BYTES", 9_000)
    monkeypatch.setattr(piece_files, "PIECE_BYTES", 1_000)


def prepare_parts(
    sources: Sequence[Path], out: Path, options: PrepareOptions, order: Sequence[int]
) -> None:
    for part in order:
        prepare_part(sources, out, options, part, len(order))


def test_parts_in_any_order_give_the_bytes_of_one_process(tmp_path: Path, source: Path) -> None:
    whole = prepare([source], tmp_path / "whole", OPTIONS)
    prepare_parts([source], tmp_path / "merged", OPTIONS, (2, 0, 1))
    merged = merge_parts(tmp_path / "merged")
    assert hashes(tmp_path / "merged") == hashes(tmp_path / "whole")
    assert (merged.root, merged.report) == (whole.root, whole.report)
    assert whole.report["skipped"]
    assert len(list((tmp_path / "merged").glob("*.tar"))) > 5


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pairs", PrepareOptions()),
        ("rows.parquet", OPTIONS),
        ("more.tar", PrepareOptions(shard_bytes=1)),
        ("image 0.png", PrepareOptions(decode=DecodeOptions(keep_depth=True))),
        ("text", PrepareOptions(decode=DecodeOptions(keep_files=True), workers=2)),
    ],
)
def test_small_and_pure_sets_have_the_same_bytes(
    tmp_path: Path, source: Path, name: str, options: PrepareOptions
) -> None:
    prepare([source / name], tmp_path / "whole", options)
    prepare_parts([source / name], tmp_path / "merged", options, (1, 0))
    merge_parts(tmp_path / "merged")
    assert hashes(tmp_path / "merged") == hashes(tmp_path / "whole")


def test_missing_parts_are_named(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(ValueError, match="holds no parts"):
        merge_parts(out)
    prepare_part([source], out, OPTIONS, 0, 3)
    prepare_part([source], out, OPTIONS, 2, 3)
    summary_path(out / PARTS_FOLDER, 2).unlink()
    with pytest.raises(ValueError, match=r"part 1/3 has not run, part 2/3 has decoded \d+ of"):
        merge_parts(out)
    with pytest.raises(ValueError, match="holds parts of a set: run bytelm merge"):
        prepare([source], out, OPTIONS)


def test_parts_of_another_input_are_refused(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "set"
    prepare_part([source], out, OPTIONS, 0, 3)
    with pytest.raises(ValueError, match="begun in 3 parts, not 2"):
        prepare_part([source], out, OPTIONS, 1, 2)
    for sources, options in (
        ([source], PrepareOptions(shard_bytes=30_000)),
        ([source / "pairs"], OPTIONS),
    ):
        with pytest.raises(ValueError, match="begun of other sources or options"):
            prepare_part(sources, out, options, 1, 3)
    with pytest.raises(ValueError, match="the parts are 0 to 2"):
        prepare_part([source], out, OPTIONS, 3, 3)


def test_the_first_part_lists_the_sources_for_all(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([source], tmp_path / "whole", OPTIONS)
    listings = []

    def counted_listing(*arguments: Any) -> PrepareInput:
        listings.append(arguments)
        return list_input(*arguments)

    monkeypatch.setattr(parts, "list_input", counted_listing)
    out = tmp_path / "merged"
    prepare_part([source], out, OPTIONS, 0, 2)
    txt(source / "later.txt")
    monkeypatch.chdir(source)
    prepare_part(["."], out, OPTIONS, 1, 2)
    assert len(listings) == 1
    merge_parts(out)
    assert hashes(out) == hashes(tmp_path / "whole")


def test_parts_wait_for_the_one_that_lists(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, listings = threading.Event(), []

    def slow_listing(*arguments: Any) -> PrepareInput:
        listings.append(arguments)
        assert waiting.wait(30)
        return list_input(*arguments)

    class Listener(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            if "waiting" in str(objects[0]):
                waiting.set()

    monkeypatch.setattr(parts, "list_input", slow_listing)
    out = tmp_path / "set"
    threads = [
        threading.Thread(target=prepare_part, args=([source], out, OPTIONS, n, 2, Listener()))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(listings) == 1
    merge_parts(out)


def test_a_machine_that_does_not_see_the_sources_is_refused(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "set"
    prepare_part([source], out, OPTIONS, 0, 2)
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="this machine does not see"):
        prepare_part([source], out, OPTIONS, 1, 2)


def test_sources_that_are_refused_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such source"):
        prepare_part([tmp_path / "none"], tmp_path / "set", OPTIONS, 0, 2)
    assert not (tmp_path / "set").exists()


def test_stored_documents_are_those_that_were_listed(tmp_path: Path, source: Path) -> None:
    listed = list_input([local_source(source)], tmp_path / "set", OPTIONS, ContainerReader())
    open_parts_folder(tmp_path / "set")
    staged = stage_input(tmp_path / "set", [source], OPTIONS, 2, lambda: listed)
    stored, documents = staged.listed.found.documents, listed.found.documents
    assert len(staged.items) > 5
    assert list(stored) == documents
    assert len(stored) == len(documents)
    assert [stored[3], stored[-1]] == [documents[3], documents[-1]]
    for first, stop in ((0, 5), (5, 10), (3, 17), (8, 8), (6, 7)):
        assert stored[first:stop] == documents[first:stop]
    assert staged.items == work_items.work_items(documents, listed.units)


def test_a_part_and_a_merge_that_run_already_are_refused(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "set"
    prepare_part([source], out, OPTIONS, 0, 1)
    summary_path(out / PARTS_FOLDER, 0).unlink()
    lock = out / PARTS_FOLDER / "part-0.lock"
    with held_folder(lock, "part"), pytest.raises(ValueError, match=r"another part 0/1 of .* is"):
        prepare_part([source], out, OPTIONS, 0, 1)
    with held_folder(out, "merge"), pytest.raises(ValueError, match=r"another merge of .* is"):
        merge_parts(out)


def test_an_interrupted_merge_goes_on_without_the_members_that_it_removed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([source], tmp_path / "whole", OPTIONS)
    out = tmp_path / "merged"
    prepare_parts([source], out, OPTIONS, (0, 1))

    def stop_after_four(recipe: ShardRecipe, folder: Path, out: Path) -> Shard:
        if len(list(out.glob("*.tar"))) == 4:
            raise OSError("the disk is full")
        return write_shard(recipe, folder, out)

    before = len(list((out / PARTS_FOLDER).glob("*.members")))
    with monkeypatch.context() as patch:
        patch.setattr(merge, "write_shard", stop_after_four)
        with pytest.raises(OSError, match="disk is full"):
            merge_parts(out)
    assert len(list((out / PARTS_FOLDER).glob("*.members"))) < before
    merge_parts(out)
    assert hashes(out) == hashes(tmp_path / "whole")
    assert not merge_parts(out).made


def test_a_part_that_is_run_again_decodes_what_is_missing(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "set"
    first = prepare_part([source], out, OPTIONS, 0, 2)
    kept = summary_path(out / PARTS_FOLDER, 0).stat().st_mtime_ns
    summary_path(out / PARTS_FOLDER, 2).unlink()
    assert first.made
    assert prepare_part([source], out, OPTIONS, 0, 2).made
    assert not prepare_part([source], out, OPTIONS, 0, 2).made
    assert summary_path(out / PARTS_FOLDER, 0).stat().st_mtime_ns == kept


def test_a_full_disk_ends_a_part_and_leaves_no_unfinished_piece(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(temporary: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(piece_files, "rename_durably", refuse)
    out = tmp_path / "set"
    with pytest.raises(OSError, match="No space left"):
        prepare_part([source / "text"], out, OPTIONS, 0, 1)
    assert not list((out / PARTS_FOLDER).glob("item-*"))


def test_losses_count_over_all_parts(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    for i in range(6):
        txt(folder / f"{i}.txt", f"text {i}")
        txt(folder / f"{i}.png", b"\x89PNG\r\n\x1a\n" + bytes(50))
    out = tmp_path / "set"
    options = PrepareOptions(max_bad_share=0.1)
    prepare_parts([folder], out, options, (0, 1))
    with pytest.raises(ValueError, match="are bad, more than 10%"):
        merge_parts(out)
    assert not list(out.glob("*.tar"))
