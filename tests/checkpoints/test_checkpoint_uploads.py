"""Uploads of checkpoints: what is in the store at any time, and what is removed from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from helpers.object_store import BUCKET, ObjectStore, object_store
from helpers.processes import children, wait_until_gone

from bytelm.pipelines.checkpoints.manifest import file_entry, write_checkpoint_manifest
from bytelm.pipelines.checkpoints.uploads import CheckpointUploads, Upload

URL = f"s3://{BUCKET}/runs/first"
LONG_SHARE = 1e-7
"""At which a rest after any work takes longer than a test."""


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


def test_uploads_that_are_killed_are_told_and_the_next_one_goes_on(
    store: ObjectStore, tmp_path: Path
) -> None:
    uploads = CheckpointUploads(URL, tmp_path, keep_last=3, keep_every=0)

    def kill(path: str) -> None:
        store.on_write = lambda path: None
        os.kill(uploads._process.pid, signal.SIGKILL)

    store.on_write = kill
    (first,) = uploaded(uploads, write_checkpoint(tmp_path, 1))
    (second,) = uploaded(uploads, write_checkpoint(tmp_path, 2))
    uploads.close()
    assert first.error == "the process that uploads ended (killed by SIGKILL)"
    assert not second.error
    assert {name.split("/")[1] for name in objects() if "manifest" in name} == {"step-00000002"}


def test_a_url_to_which_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    uploads = CheckpointUploads("http://127.0.0.1/run", tmp_path, keep_last=3, keep_every=0)
    (upload,) = uploaded(uploads, write_checkpoint(tmp_path, 1))
    uploads.close()
    assert "nothing can be written to http://127.0.0.1/run" in upload.error


def test_an_upload_rests_until_something_waits_for_it(tmp_path: Path) -> None:
    """A newer checkpoint, or the run: each upload is in the midst of its files until then."""
    folders = [write_checkpoint(tmp_path, step) for step in (1, 2)]
    url, store = f"file://{tmp_path}/store", tmp_path / "store" / "checkpoints"
    uploads = CheckpointUploads(url, tmp_path, keep_last=2, keep_every=0, share=LONG_SHARE)

    def wait_for(path: Path) -> None:
        while not path.exists():
            assert not uploads.is_idle
            time.sleep(0.001)

    manifests = [store / folder.name / "manifest.json" for folder in folders]
    uploads.offer(folders[0])
    wait_for(store / folders[0].name / "model" / "model.safetensors")
    assert not manifests[0].exists()
    uploads.offer(folders[1])
    wait_for(store / folders[1].name / "model" / "model.safetensors")
    assert [path.exists() for path in manifests] == [True, False]
    uploads.hurry()
    while not uploads.is_idle:
        time.sleep(0.001)
    assert [upload.error for upload in uploads.ended()] == ["", ""]
    assert all(path.exists() for path in manifests)
    uploads.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own there")
def test_steps_go_first_and_signals_are_for_the_run(tmp_path: Path) -> None:
    """Uploads have the lowest priority; a signal to all processes of a run ends none."""
    uploads = CheckpointUploads(f"file://{tmp_path}/store", tmp_path, keep_last=3, keep_every=0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(uploads._process.pid, number)
    (upload,) = uploaded(uploads, write_checkpoint(tmp_path, 1))
    assert not upload.error
    threads = map(int, os.listdir(f"/proc/{uploads._process.pid}/task"))
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
    uploads.close()
    assert not Path(f"/proc/{uploads._process.pid}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_uploads_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """Also where another process that the run forked still has the pipe."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from bytelm.pipelines.checkpoints.uploads import CheckpointUploads\n"
        "CheckpointUploads(sys.argv[1], Path(), 1, 0)\n"
        "forked = os.fork()\n"
        "print(forked, flush=True) if forked else None\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, f"file://{tmp_path}/store"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        forked = int(run.stdout.readline())
        (uploading,) = children(run.pid) - {forked}
        run.kill()
        try:
            wait_until_gone({uploading}, 60)
        finally:
            os.kill(forked, signal.SIGKILL)


def test_the_process_is_small() -> None:
    code = (
        "import sys, bytelm.pipelines.checkpoints.upload_process\n"
        "assert not {'torch', 'numpy', 'numba'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
