"""Sets of tables do not depend on workers, on the sizes of instalments, or on interruptions."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.processes import descendants, wait_until_gone
from helpers.source_files import documents, hashes, png, txt

from bytelm.pipelines.prepare import table_pool
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.prepare.prepare_state import PREPARE_STATE
from bytelm.pipelines.prepare.set_writer import SetWriter

OPTIONS = {"shard_bytes": 60_000, "shares": (0.7, 0.2, 0.1)}


def tables(folder: Path) -> Path:
    """Write files, and tables of each kind with good and bad rows; returns the folder."""
    rng = random.Random(0)
    rows = [{"text": f"{i} " + "x" * rng.randrange(700), "n": i} for i in range(400)]
    lines = [json.dumps(row) for row in rows]
    for i in range(0, 400, 37):
        lines[i] = rng.choice(["broken", '{"text": ""}', '{"text": null}'])
    txt(folder / "a.jsonl", "\n".join(lines))
    txt(folder / "val" / "b.csv", "text\n" + "\n".join(f"row {i}" for i in range(50)))
    (folder / "train").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train" / "c.parquet", row_group_size=90)
    png(folder / "image.png", 20, 20)
    txt(folder / "d.txt", "a text")
    return folder


def test_the_set_does_not_depend_on_workers_or_instalments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytelm.pipelines.prepare.tables.UNIT_BYTES", 20_000)
    source = tables(tmp_path / "source")
    prepared = prepare([source], tmp_path / "one", PrepareOptions(**OPTIONS))
    assert prepared.report["skipped"] == {"broken row": 4, "empty": 4, "field missing": 3}
    monkeypatch.setattr(table_pool, "READY_BYTES", 2000)
    prepare([source], tmp_path / "two", PrepareOptions(workers=3, **OPTIONS))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_an_instalment_of_many_shards_gives_the_shards_of_many_instalments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tables(tmp_path / "source")
    prepare([source], tmp_path / "large", PrepareOptions(**OPTIONS))
    text = (
        "from bytelm.pipelines.prepare import table_decode; table_decode.INSTALMENT_BYTES = 3000; "
    )
    main = "from bytelm.pipelines.prepare.decode_worker import main; main()"
    monkeypatch.setattr("bytelm.pipelines.prepare.worker_process._MAIN", text + main)
    prepare([source], tmp_path / "small", PrepareOptions(workers=2, **OPTIONS))
    assert hashes(tmp_path / "large") == hashes(tmp_path / "small")


COMMAND = """
import sys
from pathlib import Path
from bytelm.pipelines.prepare import tables
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
if __name__ == "__main__":
    tables.UNIT_BYTES = 20_000
    source, out = sys.argv[1:]
    prepare([Path(source)], Path(out), PrepareOptions(workers=2, {options}))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A command that makes a set in the folder of its last argument, and the set that it makes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    options = ", ".join(f"{name}={value!r}" for name, value in OPTIONS.items())
    (folder / "run.py").write_text(COMMAND.format(options=options))
    command = [sys.executable, str(folder / "run.py"), str(tables(folder / "source"))]
    subprocess.run([*command, str(folder / "whole")], check=True)
    return command, folder / "whole"


@pytest.mark.parametrize("shards", [1, 4, 9])
def test_an_interrupted_prepare_is_resumed_to_the_same_set(
    uninterrupted: tuple[list[str], Path], tmp_path: Path, shards: int
) -> None:
    command, whole = uninterrupted
    out = tmp_path / "set"
    process = subprocess.Popen([*command, str(out)])
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < shards and time.monotonic() < deadline:
        time.sleep(0.001)
    children = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    wait_until_gone(children, 10)
    subprocess.run([*command, str(out)], check=True)
    assert hashes(out) == hashes(whole)


def test_a_prepare_that_stops_after_any_shard_is_resumed_to_the_same_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped whenever a state is saved, again and again, each time after one more shard."""
    monkeypatch.setattr("bytelm.pipelines.prepare.tables.UNIT_BYTES", 20_000)
    source = tables(tmp_path / "source")
    options = PrepareOptions(shard_bytes=300_000, shares=(0.6, 0.3, 0.1))
    prepare([source], tmp_path / "whole", options)
    out = tmp_path / "set"
    settle = SetWriter._settle
    finished = 0

    def stop_after_one(self: SetWriter) -> None:
        had_shard = self._closing is not None
        settle(self)
        if had_shard:
            raise KeyboardInterrupt

    monkeypatch.setattr(SetWriter, "_settle", stop_after_one)
    while True:
        try:
            prepare([source], out, options)
        except KeyboardInterrupt:
            finished += 1
            assert finished < 50, "shards are written again"
            state = json.loads((out / PREPARE_STATE).read_bytes())
            assert len(state["shards"]) == finished
        else:
            break
    assert finished > 5
    assert hashes(out) == hashes(tmp_path / "whole")


def test_no_split_of_a_small_table_is_empty(tmp_path: Path) -> None:
    for count in (3, 4, 10):
        source = tmp_path / str(count)
        txt(source / "a.jsonl", "\n".join(json.dumps({"text": f"{i}"}) for i in range(count)))
        report = prepare([source], tmp_path / f"set{count}", PrepareOptions()).report
        assert set(report["splits"]) == {"train", "val", "test"}
        assert report["documents"] == count


def test_a_small_table_fills_the_splits_that_files_leave_empty(tmp_path: Path) -> None:
    txt(tmp_path / "src" / "train" / "a.txt", "a")
    txt(tmp_path / "src" / "train" / "b.txt", "b")
    txt(tmp_path / "src" / "c.jsonl", '{"text": "c"}\nbroken\n{"text": "d"}')
    prepare([tmp_path / "src"], tmp_path / "set", PrepareOptions())
    found = {s["data"]: s["split"] for d in documents(tmp_path / "set").values() for s in d}
    assert found[b"a"] == found[b"b"] == "train"
    assert {found[b"c"], found[b"d"]} == {"val", "test"}
