"""`bytelm prepare --on` a Ray cluster of two nodes: the bytes of one process, come what may."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from helpers.commands import bytelm, environment
from helpers.processes import hear_interrupts
from helpers.source_files import hashes, png, sound, txt
from helpers.web_server import serving

pytestmark = pytest.mark.long
SMALL_ITEMS = """
import sys
from bytelm.pipelines.cli import main
from bytelm.pipelines.prepare import work_items
work_items.ITEM_DOCUMENTS = 4
sys.exit(main.main())
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder, a tar of pairs and a Parquet file, with some broken files."""
    top = tmp_path_factory.mktemp("source")
    folder = top / "folder"
    folder.mkdir()
    for i in range(80):
        txt(folder / f"{i}.txt", f"text {i} " * 40)
        png(folder / f"{i}.png", 60, 50, seed=i)
        sound(folder / f"{i}.wav")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with tarfile.open(top / "pairs.tar", "w") as tar:
        for i in range(40):
            for suffix, data in (("txt", f"caption {i}".encode()), ("wav", b"no sound")):
                info = tarfile.TarInfo(f"{i:03d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    rows = pyarrow.table({"text": [f"row {i} " * 30 for i in range(400)]})
    pyarrow.parquet.write_table(rows, top / "rows.parquet", row_group_size=25)
    return [folder, top / "pairs.tar", top / "rows.parquet"]


@pytest.fixture(scope="module")
def expected(source: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of every file of the set that one process makes."""
    out = tmp_path_factory.mktemp("expected") / "set"
    bytelm(*arguments(source, out))
    return hashes(out)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A cluster of two nodes with a CPU each."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps a token
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**settings, "include_dashboard": False})
    try:
        cluster.add_node(**settings)
        yield cluster
    finally:
        cluster.shutdown()


def arguments(source: Sequence[Path], out: Path, *options: str) -> list[str]:
    """Arguments of a prepare with small shards."""
    names = [str(path) for path in source]
    return ["prepare", *names, "--out", str(out), "--shard-mb", "0.2", *options]


def start(source: Sequence[Path], out: Path, address: str) -> subprocess.Popen[str]:
    """Start a prepare whose items are small."""
    command = [sys.executable, "-c", SMALL_ITEMS, *arguments(source, out, "--on", address)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment(),
        preexec_fn=hear_interrupts,
    )


def wait_for_items(out: Path, count: int, is_over: Callable[[], bool]) -> None:
    """Wait until so many items are decoded."""
    folder = out.with_name(f"{out.name}.pieces")
    while len(list(folder.glob("item-*.npz"))) < count:
        assert not is_over(), "it ended early"
        time.sleep(0.01)


def test_two_nodes_give_the_bytes_of_one_process(
    source: list[Path], expected: dict[str, str], cluster: Any, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    result = bytelm(*arguments(source, out, "--on", cluster.address))
    assert hashes(out) == expected
    assert "nodes: 2, CPUs: 2" in result.stderr
    assert "raylet" not in result.stderr + result.stdout
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("set")] == ["set"]


def test_tars_and_tables_at_urls_are_downloaded_and_read_by_nodes(
    source: list[Path], cluster: Any, tmp_path: Path
) -> None:
    with serving() as web:
        web.objects |= {"rows.parquet": source[2].read_bytes()}
        web.objects |= {f"{i}.tar": source[1].read_bytes() for i in range(3)}
        urls = (f"{web.url}/{{0..2}}.tar", f"{web.url}/rows.parquet", "--max-bad-share", "1")
        bytelm("prepare", *urls, "--out", tmp_path / "one")
        web.asked.clear()
        on_ray = (*urls, "--on", cluster.address)
        bytelm("prepare", *on_ray, "--out", tmp_path / "set")
        assert set(web.asked) == set(web.objects)
        web.objects.pop("1.tar")
        missing = bytelm("prepare", *on_ray, "--out", tmp_path / "none", status=2)
    assert hashes(tmp_path / "set") == hashes(tmp_path / "one")
    assert f"source {web.url}/1.tar" in missing.stderr


def test_a_lost_node_costs_nothing(
    source: list[Path], expected: dict[str, str], cluster: Any, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    process = start(source, out, cluster.address)
    wait_for_items(out, 3, lambda: process.poll() is not None)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    assert hashes(out) == expected
    assert "raylet" not in stderr + stdout


@pytest.mark.parametrize("items", [2, 30])
def test_a_killed_driver_goes_on_where_it_stopped(
    source: list[Path], expected: dict[str, str], cluster: Any, tmp_path: Path, items: int
) -> None:
    out = tmp_path / "set"
    process = start(source, out, cluster.address)
    wait_for_items(out, items, lambda: process.poll() is not None)
    process.kill()
    process.communicate()
    members = next(out.with_name("set.pieces").glob("item-*.members"), None)
    if members:  # not synced when its machine went down
        members.write_bytes(members.read_bytes()[:-1])
    again = start(source, out, cluster.address)
    stdout, stderr = again.communicate(timeout=300)
    assert again.returncode == 0, stdout + stderr
    assert "resuming after" in stderr
    assert hashes(out) == expected


def test_ctrl_c_ends_the_driver_soon(source: list[Path], cluster: Any, tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = start(source, out, cluster.address)
    wait_for_items(out, 1, lambda: process.poll() is not None)
    process.send_signal(2)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stdout + stderr
    assert not (out / "manifest.json").exists()
    assert "Traceback" not in stderr
