"""A destination takes whole, checked objects, or raises an error that names them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from helpers.object_store import BUCKET, ObjectStore, object_store

from bytelm.pipelines.storage import clients, retries
from bytelm.pipelines.storage.cache import StoreClosedError
from bytelm.pipelines.storage.clients import TransientError
from bytelm.pipelines.storage.destination import check_stored, open_destination


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as store:
        monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 5.0)
        yield store


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
    return {
        "folder": str(tmp_path / "set"),
        "file": (tmp_path / "set").as_uri(),
        "memory": f"memory://{tmp_path.name}/set",
        "s3": f"s3://{BUCKET}/runs/set",
    }[request.param]


def test_objects_are_written_listed_read_and_deleted(location: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(bytes(100_000))
    with open_destination(location) as destination:
        assert destination.list() == {}
        destination.upload(source, "step-1/model.bin")
        destination.write("step-1/note.json", b"old")
        destination.write("step-1/note.json", b"new")
        destination.write("top.json", b"{}")
        assert destination.list("step-1") == {"step-1/model.bin": 100_000, "step-1/note.json": 3}
        assert len(destination.list()) == 3
        assert destination.read("step-1/note.json", 3) == b"new"
        with pytest.raises(ValueError, match="more than 2 bytes"):
            destination.read("step-1/note.json", 2)
        destination.download("step-1/model.bin", copy)
        assert copy.read_bytes() == source.read_bytes()
        destination.abort_uploads()
        destination.delete(["step-1/model.bin", "step-1/note.json", "missing"])
        assert destination.list() == {"top.json": 2}
        with pytest.raises(FileNotFoundError, match=r"note\.json"):
            destination.read("step-1/note.json", 3)
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_the_last_object_is_created_once(location: str) -> None:
    first, second = open_destination(location), open_destination(location)
    first.create_last("manifest.json", b"first")
    with pytest.raises(FileExistsError, match=r"manifest\.json exists already"):
        second.create_last("manifest.json", b"second")
    with pytest.raises(FileExistsError):
        second.create_last("manifest.json", b"first")
    assert second.read("manifest.json", 10) == b"first"


@pytest.mark.parametrize("name", ["", "/a", "a/", "../a", "a/../b", "a b", "é", "a?b", "a//b"])
def test_names_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name of an object"):
        open_destination(tmp_path).write(name, b"")


def test_places_that_take_no_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing can be written to https://host/set"):
        open_destination("https://host/set")
    with pytest.raises(ValueError, match="pip install adlfs"):
        open_destination("az://container/set")


def test_an_upload_in_parts_survives_failures(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(retries, "ATTEMPTS", 20)
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * (12 << 12))
    s3.failure_share = 0.3
    with open_destination(f"s3://{BUCKET}/set") as destination:
        for number in range(3):
            destination.upload(source, f"{number}.tar")
            destination.create_last(f"{number}.json", b"{}")
        s3.failure_share = 0.0
        destination.abort_uploads()
        assert set(destination.list().values()) == {source.stat().st_size, 2}
        destination.download("1.tar", tmp_path / "copy")
    assert s3.failures > 0
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert fsspec.filesystem("s3").list_multipart_uploads(BUCKET) == []


def test_an_upload_whose_last_answer_is_lost_is_tried_again(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 has completed it, and so does not know it any more when the client aborts it."""
    monkeypatch.setattr(clients, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(s3, "_rng", random.Random(4))  # the store sees what fails
    source = tmp_path / "source"
    source.write_bytes(bytes(11 << 20))
    calls = ["begin", "part", "part", "part", "complete", "abort"]

    def lose_answer(path: str) -> None:
        s3.failure_share = float(bool(calls) and calls.pop(0) == "complete")

    s3.on_write = lose_answer
    with open_destination(f"s3://{BUCKET}/set") as destination:
        destination.upload(source, "a.tar")
    assert s3.failures == 1
    assert not calls


def test_a_failure_that_does_not_pass_is_one_error(s3: ObjectStore) -> None:
    with pytest.raises(FileNotFoundError, match=r"s3://none/set/a cannot be written: .*bucket"):
        open_destination("s3://none/set").write("a", b"")
    s3.failure_share = 1.0
    with pytest.raises(OSError, match=rf"s3://{BUCKET}/set/a: .*\(4 attempts\)"):
        open_destination(f"s3://{BUCKET}/set").write("a", b"")


def test_a_closed_destination_lets_its_threads_go(s3: ObjectStore, tmp_path: Path) -> None:
    """An upload that stalls ends soon after `close`, far below its time-out."""
    is_asked, errors = threading.Event(), []

    def stall(path: str) -> None:
        is_asked.set()
        time.sleep(2)

    def upload() -> None:
        try:
            destination.write("a", b"data")
        except StoreClosedError as error:
            errors.append(error)

    s3.on_write = stall
    destination = open_destination(f"s3://{BUCKET}/set")
    thread = threading.Thread(target=upload)
    thread.start()
    assert is_asked.wait(30)
    destination.close()
    thread.join(1.5)
    assert not thread.is_alive()
    assert len(errors) == 1


def test_an_object_with_other_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    check_stored({"size": 5, "md5Hash": "XUFAKrxLKna5cZ2REBfFkg=="}, path, "gs://b/file")
    for info in (
        {"size": 4},
        {"size": 5, "md5Hash": "AAFAKrxLKna5cZ2REBfFkg=="},
        {"size": 5, "lfs": {"sha256": "0" * 64}},
    ):
        with pytest.raises(TransientError, match="arrived"):
            check_stored(info, path, "gs://b/file")
