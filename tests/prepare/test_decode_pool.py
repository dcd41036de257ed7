"""A hostile file costs itself only, whatever it does to the process that decodes it."""

from __future__ import annotations

import os
from pathlib import Path

import PIL.Image
import pytest
from helpers.processes import descendants
from helpers.source_files import documents, hashes, png, small_source, sound, txt
from helpers.traps import Trapped

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.decode_worker import cpu_seconds
from bytelm.pipelines.prepare.documents import DocumentPart, SourceDocument
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare

TRAPS = {
    "CRASH": ("decoder died", "killed by SIGSEGV"),
    "EXIT": ("decoder died", "exit status 3"),
    "SPIN": ("too slow", "decoding takes over 5 seconds of processor time"),
    "SLEEP": ("too slow", "decoding takes over 5 seconds of processor time"),
    "MEMORY": ("over the memory limit", "decoding takes over 960 MiB"),
    "RAISE": ("decoder failed", "KeyError: 'what a decoder raises'"),
}


@pytest.fixture(autouse=True)
def traps_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hostile_file_costs_itself_only(tmp_path: Path, workers: int) -> None:
    source = small_source(tmp_path / "source")
    prepare([source], tmp_path / "sound", PrepareOptions())
    for name in TRAPS:
        txt(source / f"{name}.txt", f"{name} trap")
        png(source / "with" / f"{name}.png")  # of a document whose text is a trap
        txt(source / "with" / f"{name}.txt", f"{name} trap")
    options = PrepareOptions(decode=Trapped(), workers=workers)
    prepared = prepare([source], tmp_path / "set", options)
    entries = prepared.report["skipped_files"]
    assert {e["name"]: (e["reason"], e["detail"]) for e in entries} == {
        f"{folder}{name}.txt": refusal
        for name, refusal in TRAPS.items()
        for folder in ("", "with/")
    }
    found, expected = documents(tmp_path / "set"), documents(tmp_path / "sound")
    assert [k for k in found if k in expected] == list(expected)
    assert all(found[k] == segments for k, segments in expected.items())
    pictures = [segments for k, segments in found.items() if k not in expected]
    assert [[s["modality"] for s in segments] for segments in pictures] == [["image"]] * len(TRAPS)


@pytest.mark.parametrize("trap", ["KILLED_ONCE", "STOPPED_ONCE"])
def test_a_worker_that_is_killed_or_stopped_from_outside_costs_nothing(
    tmp_path: Path, trap: str
) -> None:
    source = small_source(tmp_path / "source")
    for i in range(3):
        txt(source / f"{i}.txt", f"{trap} {tmp_path / str(i)}")
    prepared = prepare([source], tmp_path / "set", PrepareOptions(decode=Trapped(), workers=2))
    assert prepared.report["skipped"] == {}
    assert prepared.report["documents"] == 43
    assert all((tmp_path / str(i)).exists() for i in range(3))
    prepare([source], tmp_path / "calm", PrepareOptions())
    found, expected = hashes(tmp_path / "set"), hashes(tmp_path / "calm")
    assert {n: h for n, h in found.items() if n != "manifest.json"} == {
        n: h for n, h in expected.items() if n != "manifest.json"
    }


def test_documents_of_large_parts_come_whole(tmp_path: Path) -> None:
    """Each part alone is more than a batch may hold."""
    (tmp_path / "source").mkdir()
    for i in range(2):
        PIL.Image.new("RGB", (2500, 2400), (i, i, i)).save(tmp_path / "source" / f"{i}.png")
        sound(tmp_path / "source" / f"{i}.flac", 9_000_000)
    prepare([tmp_path / "source"], tmp_path / "set", PrepareOptions(workers=2))
    found = documents(tmp_path / "set").values()
    assert [[s["modality"] for s in segments] for segments in found] == [["image", "audio"]] * 2


def test_a_file_that_is_gone_when_it_is_decoded_is_skipped(tmp_path: Path) -> None:
    txt(tmp_path / "a.txt", "a")
    (tmp_path / "folder").mkdir()
    names = {"a.txt": None, "gone.txt": "missing", "folder": "unreadable"}
    found = [
        SourceDocument(str(i), "train", (DocumentPart(None, name, str(tmp_path / name), 1),))
        for i, name in enumerate(names)
    ]
    with DecodePool(DecodeOptions(), workers=1) as pool:
        results = list(pool.decode_documents(found))
    assert [r.skipped[0].reason if r.skipped else None for r in results] == list(names.values())
    assert [s.data for s in results[0].samples] == [b"a"]


def test_workers_that_cannot_start_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    txt(tmp_path / "a.txt")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"die before their first file .* fewer --workers"):
        prepare([tmp_path / "a.txt"], tmp_path / "set", PrepareOptions(workers=2))


def test_no_worker_outlives_a_prepare(tmp_path: Path) -> None:
    before = descendants(os.getpid())
    prepare([small_source(tmp_path / "source")], tmp_path / "set", PrepareOptions(workers=2))
    assert descendants(os.getpid()) == before


def test_a_large_file_has_more_time() -> None:
    assert cpu_seconds(0) == 5
    assert cpu_seconds(100_000_000) == 105
