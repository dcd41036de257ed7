"""prepare to an object store gives the bytes of a local one, or no set."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from helpers.commands import bytelm, command, environment, metrics, write_config
from helpers.object_store import BUCKET, ObjectStore, object_store
from helpers.processes import descendants, hear_interrupts, wait_until_gone
from helpers.source_files import hashes, small_source

from bytelm.pipelines.prepare import claim
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.shards.format import SET_MANIFEST
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.storage import clients, retries
from bytelm.pipelines.storage.destination import open_destination

OPTIONS = PrepareOptions(shard_bytes=20_000)
URL = f"s3://{BUCKET}/sets/small"


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retries, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(claim, "TAKE_OVER_SECONDS", 0.6)
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.1)
    with object_store(monkeypatch) as store:
        yield store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_source(tmp_path / "source")


def downloaded(folder: Path) -> dict[str, str]:
    """SHA-256 of each object at URL, by name; the objects are copied to a new folder."""
    folder.mkdir()
    with open_destination(URL) as destination:
        for name in destination.list():
            destination.download(name, folder / name)
    return hashes(folder)


def test_the_bytes_are_those_of_a_folder(s3: ObjectStore, source: Path, tmp_path: Path) -> None:
    """With requests that fail; the manifest is written last, and the scratch folder is empty."""
    expected = prepare([source], tmp_path / "local", OPTIONS)
    s3.failure_share = 0.15
    made = prepare([source], URL, OPTIONS)
    s3.failure_share = 0.0
    assert s3.failures > 0
    assert (made.root, made.report) == (expected.root, expected.report)
    assert downloaded(tmp_path / "copy") == hashes(tmp_path / "local")
    last = [p.rpartition("/")[2] for p in s3.writes if "manifest" in p or p.endswith((".tar", "y"))]
    assert last[-1] == SET_MANIFEST
    assert not list((tmp_path / "home/.cache/bytelm/prepare").iterdir())
    assert not prepare([source], URL, OPTIONS).made
    with pytest.raises(ValueError, match=f"{URL} holds a set already, made of other files"):
        prepare([source], URL, PrepareOptions(shard_bytes=30_000))


def test_an_interrupted_one_is_resumed(
    s3: ObjectStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same machine at once; elsewhere after a wait. Finished shards are kept."""
    prepare([source], tmp_path / "local", OPTIONS)
    for number, home in enumerate(("home", "home", "elsewhere")):
        monkeypatch.setenv("HOME", str(tmp_path / home))
        seen: list[str] = []

        def stop(path: str, seen: list[str] = seen) -> None:
            seen.append(path)
            if path.endswith(".tar") and len([p for p in seen if p.endswith(".tar")]) == 2:
                raise RuntimeError("the server is gone")

        monkeypatch.setattr(retries, "ATTEMPTS", 1)
        s3.on_write = stop
        with pytest.raises(OSError, match=r"\.tar: .*attempt"):
            prepare([source], URL, OPTIONS)
        s3.on_write = lambda path: None
        monkeypatch.setattr(retries, "ATTEMPTS", 8)
        names = open_destination(URL).list()
        assert SET_MANIFEST not in names
        assert len([name for name in names if name.endswith(".tar")]) == number + 1
    assert prepare([source], URL, OPTIONS).made
    assert downloaded(tmp_path / "copy") == hashes(tmp_path / "local")


def test_of_two_writers_one_is_refused(
    s3: ObjectStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one on this machine, and one on another machine, while the first writes."""
    refusals = []

    def start_another(path: str) -> None:
        if not path.endswith(".tar") or refusals:
            return
        refusals.append("")
        for home in ("home", "elsewhere"):
            monkeypatch.setenv("HOME", str(tmp_path / home))
            with pytest.raises(ValueError, match="another prepare") as caught:
                prepare([source], URL, OPTIONS)
            refusals.append(str(caught.value))

    s3.on_write = start_another
    monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 20.0)
    assert prepare([source], URL, OPTIONS).made
    assert len(refusals) == 3
    prepare([source], tmp_path / "local", OPTIONS)
    assert downloaded(tmp_path / "copy") == hashes(tmp_path / "local")


def test_other_things_are_left_alone(s3: ObjectStore, source: Path) -> None:
    fsspec.filesystem("s3").pipe(f"{BUCKET}/sets/small/precious.txt", b"data")
    with pytest.raises(ValueError, match=r"other things \(precious\.txt\)"):
        prepare([source], URL, OPTIONS)
    assert open_destination(URL).list() == {"precious.txt": 4}


def test_a_missing_bucket_is_one_line(s3: ObjectStore, source: Path) -> None:
    error = bytelm("prepare", source, "--out", "s3://none/set", status=1).stderr
    assert error.count("\n") == 1
    assert "s3://none/set/.prepare-owner.json cannot be written: " in error
    error = bytelm("prepare", source, "--out", URL, "--part", "0/2", status=2).stderr
    assert "a folder that all machines see" in error


@pytest.mark.long
def test_kills_leave_no_set_or_a_whole_one(s3: ObjectStore, source: Path, tmp_path: Path) -> None:
    """Twenty kills at random moments; then the set is that of a folder, and train and evaluate
    read it."""
    bytelm("prepare", source, "--out", tmp_path / "local", "--shard-mb", 0.02)
    expected = hashes(tmp_path / "local")
    rng = random.Random(0)
    arguments = command("prepare", source, "--out", URL, "--shard-mb", 0.02, "--workers", 1)
    s3.failure_share, kills, whole = 0.1, 0, 0
    while kills < 20:
        process = subprocess.Popen(
            arguments, env=environment(), preexec_fn=hear_interrupts, stderr=subprocess.PIPE
        )
        try:
            process.wait(rng.uniform(1.0, 7.0))
        except subprocess.TimeoutExpired:
            below = descendants(process.pid)
            number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            process.send_signal(number)
            begin = time.monotonic()
            process.wait(15)
            assert time.monotonic() - begin < 10
            wait_until_gone(below, 10)
            kills += 1
        names = open_destination(URL).list()
        if SET_MANIFEST in names:
            whole += 1
            assert downloaded(tmp_path / f"copy {kills} {whole}").items() >= expected.items()
            open_destination(URL).delete(names)
    bytelm("prepare", source, "--out", URL, "--shard-mb", 0.02)
    s3.failure_share = 0.0
    assert downloaded(tmp_path / "copy") == expected
    local = ShardSet(tmp_path / "local")
    config = write_config(tmp_path / "run.yaml", local, steps=3, global_batch=2)
    losses = []
    for place in (tmp_path / "local", URL):
        run = tmp_path / f"run-{len(losses)}"
        bytelm("train", config, "--out", run, "--set", f"data.sets=[{{path: '{place}'}}]")
        losses.append([line["loss"] for line in metrics(run)])
        bytelm("evaluate", run, "--data", place, "--split", "train")
    assert losses[0] == losses[1]
