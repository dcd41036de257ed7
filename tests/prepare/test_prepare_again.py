"""prepare makes the same set with any number of workers, and after any interruption."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers.processes import descendants, hear_interrupts, wait_until_gone
from helpers.source_files import documents, hashes, small_source, txt

from bytelm.pipelines.prepare import decode_pool
from bytelm.pipelines.prepare.documents import make_key
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare, summary
from bytelm.pipelines.prepare.prepare_state import PREPARE_STATE
from bytelm.pipelines.shards.format import SET_MANIFEST
from bytelm.pipelines.shards.reader import ShardSet


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_source(tmp_path / "source")


def test_the_set_does_not_depend_on_workers(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    txt(source / "bad.png", b"\x89PNG\r\n\x1a\n" + bytes(50))
    monkeypatch.setattr(decode_pool, "BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(decode_pool, "READY_BYTES", 2000)
    prepared = [
        prepare([source], tmp_path / str(n), PrepareOptions(workers=n, shard_bytes=20_000))
        for n in (1, 2, 3)
    ]
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2") == hashes(tmp_path / "3")
    assert prepared[0] == prepared[1] == prepared[2]
    assert prepared[0].report["skipped"] == {"unreadable": 1}


def test_a_batch_that_grows_large_is_given_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):  # 9 MB each when decoded, some KB on disk
        PIL.Image.new("RGB", (2000, 1500), (i, i, i)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(decode_pool, "BATCH_DOCUMENTS", 4)
    sources = [tmp_path / f"{i}.png" for i in range(6)]
    for workers in (1, 2):
        prepare(sources, tmp_path / str(workers), PrepareOptions(workers=workers))
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def test_a_complete_set_is_left_as_it_is(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "set"
    first = prepare([source], out, PrepareOptions())
    times = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    again = prepare([source], out, PrepareOptions(workers=2))
    assert first.made
    assert not again.made
    assert (again.root, again.report) == (first.root, first.report)
    assert "complete already" in summary(again, out)
    assert times == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}

    with pytest.raises(ValueError, match="other files or options: choose another --out"):
        prepare([source], out, PrepareOptions(shard_bytes=20_000))
    text = source / "text" / "0.txt"
    later = (out / SET_MANIFEST).stat().st_mtime_ns + 1
    text.write_bytes(text.read_bytes().upper())  # of the same size
    os.utime(text, ns=(later, later))
    with pytest.raises(ValueError, match="files changed since"):
        prepare([source], out, PrepareOptions())


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "set"
    for name in ("precious.txt", "train-000000.tar"):
        txt(out / name)
        with pytest.raises(ValueError, match=f"other things .{name}.*choose an empty folder"):
            prepare([source], out, PrepareOptions())
        (out / name).unlink()
    txt(tmp_path / "file")
    with pytest.raises(ValueError, match="no folder"):
        prepare([source], tmp_path / "file", PrepareOptions())


def test_a_set_inside_its_source_is_no_source(tmp_path: Path, source: Path) -> None:
    first = prepare([source], source / "set", PrepareOptions())
    assert prepare([source], source / "set", PrepareOptions()).report == first.report
    assert first.report["files"] == 50


COMMAND = """
import sys
from pathlib import Path
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
if __name__ == "__main__":
    source, out, workers = sys.argv[1:]
    prepare([Path(source)], Path(out), PrepareOptions(workers=int(workers), shard_bytes=30_000))
"""


def start(script: Path, source: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    script.write_text(COMMAND)
    command = [sys.executable, str(script), str(source), str(out), str(workers)]
    return subprocess.Popen(command, preexec_fn=hear_interrupts)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    ("workers", "stop"), [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)]
)
def test_an_interrupted_prepare_is_resumed_to_the_same_set(
    tmp_path: Path, workers: int, stop: signal.Signals
) -> None:
    source = tmp_path / "source"
    rng = np.random.default_rng(0)
    for i in range(200):
        txt(source / f"{i}.txt", rng.bytes(5000).replace(b"\0", b"1"))
    txt(source / "bad.png", b"\x89PNG\r\n\x1a\n" + bytes(50))
    options = PrepareOptions(shard_bytes=30_000)
    prepare([source], tmp_path / "whole", options)

    out = tmp_path / "set"
    process = start(tmp_path / "run.py", source, out, workers)
    deadline = time.monotonic() + 30
    while not (out / "train-000003.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    children = descendants(process.pid)
    process.send_signal(stop)
    process.wait(10)
    assert (out / "train-000003.tar").exists()
    assert not (out / SET_MANIFEST).exists(), "it was over before it was killed"
    assert len(children) >= workers
    wait_until_gone(children, 10)

    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("train-00000[0-2].tar")}
    with pytest.raises(ValueError, match="interrupted"):
        ShardSet(out)
    assert prepare([source], out, options).made
    assert hashes(out) == hashes(tmp_path / "whole")
    assert finished == {name: (out / name).stat().st_mtime_ns for name in finished}


def test_changed_sources_or_lost_shards_start_over(tmp_path: Path, source: Path) -> None:
    options = PrepareOptions(shard_bytes=20_000)
    prepare([source], tmp_path / "whole", options)

    def interrupted(out: Path) -> Path:
        """Stop a prepare before it writes the manifest; returns the set's folder."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bytelm.pipelines.prepare.set_target.write_set_manifest", _stop)
            with pytest.raises(KeyboardInterrupt):
                prepare([source], out, options)
        return out

    out = interrupted(tmp_path / "lost")
    (out / "train-000001.tar").write_bytes(b"short")
    prepare([source], out, options)
    assert hashes(out) == hashes(tmp_path / "whole")

    out = interrupted(tmp_path / "broken")
    (out / PREPARE_STATE).write_text("{")
    prepare([source], out, options)
    assert hashes(out) == hashes(tmp_path / "whole")

    out = interrupted(tmp_path / "changed")
    text = source / "text" / "9.txt"
    text.write_bytes(text.read_bytes().upper())
    prepare([source], out, options)
    assert documents(out)[make_key("text/9")][0]["data"] == text.read_bytes()
    prepare([source], tmp_path / "fresh", options)
    assert hashes(out) == hashes(tmp_path / "fresh")


def _stop(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_two_at_once_are_refused(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another prepare"):
        prepare([source], out, PrepareOptions())
    os.close(descriptor)
    assert prepare([source], out, PrepareOptions()).made
