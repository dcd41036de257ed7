"""Uploads of checkpoints: what is in the store at any time, and what is removed from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from helpers.object_store import BUCKET, ObjectStore, object_store

from bytelm.pipelines.checkpoints.manifest import file_entry, write_checkpoint_manifest
from bytelm.pipelines.checkpoints.remote_run import CheckpointUploads, Upload, fetch_config

URL = f"s3://{BUCKET}/runs/first"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as store:
        yield store


def write_checkpoint(run: Path, step: int) -> Path:
    """A checkpoint of two small files."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    (folder / "model").mkdir(parents=True)
    for name in ("state.json", "model/model.safetensors"):
        (folder / name).write_text(f"{name} of step {step}")
    files = {p.relative_to(folder).as_posix(): file_entry(p) for p in folder.rglob("*.*")}
    write_checkpoint_manifest(folder, folder.name, files)
    (run / "config.json").write_text("{}")
    return folder


def uploaded(uploads: CheckpointUploads, folder: Path) -> list[Upload]:
    """Upload a checkpoint, and return the uploads that have ended."""
    uploads.offer(folder)
    while not uploads.is_idle:
        time.sleep(0.001)
    return uploads.ended()


def objects() -> list[str]:
    found = fsspec.filesystem("s3", use_listings_cache=False).find(URL)
    return [name.removeprefix(f"{BUCKET}/runs/first/") for name in found]


def test_the_manifest_comes_last_and_goes_first(store: ObjectStore, tmp_path: Path) -> None:
    """With one kept, the second upload removes the first, once it is whole itself."""
    uploads = CheckpointUploads(URL, tmp_path, keep_last=1, keep_every=0)
    (first,) = uploaded(uploads, write_checkpoint(tmp_path, 1))
    assert (first.name, first.error) == ("step-00000001", "")
    assert store.writes[-1].endswith("step-00000001/manifest.json")
    store.writes.clear()
    uploaded(uploads, write_checkpoint(tmp_path, 2))
    uploads.close()
    names = [path.partition("/checkpoints/")[2] for path in store.writes if "checkpoints" in path]
    assert names[0] == "step-00000002/manifest.json", "one of this step that is replaced"
    assert names[-4:-2] == ["step-00000002/manifest.json", "step-00000001/manifest.json"]
    assert {name.split("/")[1] for name in objects() if "/" in name} == {"step-00000002"}


def test_what_a_killed_process_has_sent_is_forgotten(store: ObjectStore, tmp_path: Path) -> None:
    """Parts of a large file below the URL; those of another run stay."""
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    for key in ("runs/first/checkpoints/step-00000001/large", "runs/second/large"):
        upload = s3.call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)["UploadId"]
        s3.call_s3(
            "upload_part", Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"half"
        )
    uploads = CheckpointUploads(URL, tmp_path, keep_last=1, keep_every=0)
    (upload,) = uploaded(uploads, write_checkpoint(tmp_path, 2))
    uploads.close()
    assert not upload.error
    left = s3.call_s3("list_multipart_uploads", Bucket=BUCKET)["Uploads"]
    assert [entry["Key"] for entry in left] == ["runs/second/large"]


def test_a_newer_checkpoint_takes_the_place_of_one_that_waits(
    store: ObjectStore, tmp_path: Path
) -> None:
    """While the first is sent, two more come: both are held, and one is passed over."""
    uploads = CheckpointUploads(URL, tmp_path, keep_last=3, keep_every=0)
    folders = [write_checkpoint(tmp_path, step) for step in (1, 2, 3)]

    def offer_others(path: str) -> None:
        store.on_write = lambda path: None
        assert uploads.is_held(folders[0])
        for folder in folders[1:]:
            uploads.offer(folder)
        assert [uploads.is_held(folder) for folder in folders] == [True, False, True]

    store.on_write = offer_others
    ended = uploaded(uploads, folders[0])
    uploads.close()
    assert [upload.name for upload in ended] == ["step-00000001", "step-00000003"]
    assert ended[-1].passed_over == 1
    assert not uploads.is_held(folders[2])


def test_a_url_without_a_runs_config_is_refused(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    with pytest.raises(ValueError, match=r"has no config\.json of a run: name its CONFIG"):
        fetch_config(url)
    (tmp_path / "config.json").write_text('{"train": {"steps": 1}}')
    assert fetch_config(url) == {"train": {"steps": 1}}
