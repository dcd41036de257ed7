"""Damaged and hostile checkpoints are found and named, and the newest whole one is used."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers.commands import bytelm, command, environment, metrics, write_config
from helpers.processes import MARK, children, kill_marked, marked, wait_until_gone
from helpers.sets import text, write_set

from bytelm.pipelines.checkpoints import run_folder
from bytelm.pipelines.checkpoints.manifest import (
    CHECKPOINT_MANIFEST,
    checkpoint_damage,
    file_entry,
    write_checkpoint_manifest,
)
from bytelm.pipelines.shards.reader import DamageError, ShardSet

STEPS = 12
SIZES = {"steps": STEPS, "checkpoint_every": 2, "keep_last": 3, "keep_every": 4}
KEPT = ["step-00000004", "step-00000008", "step-00000010", "step-00000012"]
"""The three newest of the checkpoints of every second step, and those of every fourth step."""
END_SECONDS = 60.0
Undo = dict[Path, bytes]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one process with several checkpoints, and its config."""
    folder = tmp_path_factory.mktemp("trained")
    shard_set = write_set(folder / "set", [[text(bytes([65 + i]) * 200)] for i in range(9)])
    config = write_config(folder / "run.yaml", shard_set, **SIZES)
    bytelm("train", config, "--out", folder / "run")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, with its config beside it."""
    shutil.copy(trained / "run.yaml", tmp_path)
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def full_damage(folder: Path) -> str | None:
    return checkpoint_damage(folder, lambda path: True)


def flip_bit(path: Path, rng: random.Random) -> Undo:
    """Flip one bit of a file."""
    data = path.read_bytes()
    i = rng.randrange(len(data))
    path.write_bytes(data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :])
    return {path: data}


def truncate(path: Path, rng: random.Random) -> Undo:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])
    return {path: data}


def remove(path: Path, rng: random.Random) -> Undo:
    data = path.read_bytes()
    path.unlink()
    return {path: data}


def swap(path: Path, rng: random.Random) -> Undo:
    """Swap a file with another one, of this checkpoint or of another."""
    others = [p for p in path.parents[2].rglob("*") if p.is_file()]
    undo = {p: p.read_bytes() for p in [path, *others]}
    other = rng.choice([p for p in others if undo[p] != undo[path]])
    path.write_bytes(undo[other])
    other.write_bytes(undo[path])
    return {path: undo[path], other: undo[other]}


def test_every_mutation_is_found_and_the_fallback_named(run: Path) -> None:
    """Each of 200 mutations changes a file of the newest checkpoint, or `latest`."""
    folder = run / "checkpoints"
    assert sorted(p.name for p in folder.glob("step-*")) == KEPT
    assert (folder / "latest").read_text() == KEPT[-1]
    assert run_folder.newest_usable(run, full_damage).refused == []
    rng = random.Random(0)
    for number in range(200):
        mutate = (flip_bit, truncate, remove, swap)[number % 4]
        inside = [p for p in (folder / KEPT[-1]).rglob("*") if p.is_file()]
        path = rng.choice([*sorted(inside), folder / "latest"])
        undo = mutate(path, rng)
        usable = run_folder.newest_usable(run, full_damage)
        named = [changed for changed in undo if changed.name in usable.refused[0]]
        assert named, f"{mutate.__name__} of {path}: {usable.refused}"
        is_newest_damaged = any(KEPT[-1] in changed.parts for changed in undo)
        assert (usable.folder.name != KEPT[-1]) == is_newest_damaged
        assert full_damage(usable.folder) is None
        for changed, data in undo.items():
            changed.write_bytes(data)
    assert run_folder.newest_usable(run, full_damage).refused == []


class Canary:
    """Makes a folder when its pickle is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def forge(folder: Path, path: Path, value: object) -> None:
    """Write a pickle into a checkpoint, and a manifest that agrees with it."""
    torch.save(value, path)
    files = {str(p.relative_to(folder)): file_entry(p) for p in folder.rglob("*") if p.is_file()}
    del files[CHECKPOINT_MANIFEST]
    write_checkpoint_manifest(folder, folder.name, files)


def test_a_damaged_and_a_hostile_checkpoint_are_passed_over(run: Path, tmp_path: Path) -> None:
    """The newest checkpoint is truncated, and the second would make a canary. The run resumes from
    the third, names the others, and renames them."""
    expected = [line["loss"] for line in metrics(run)]
    newest, hostile, whole = (run / "checkpoints" / name for name in (KEPT[3], KEPT[2], KEPT[1]))
    truncate(next(newest.glob("deepspeed/*optim*")), random.Random(1))
    canary = tmp_path / "canary"
    states = next(hostile.glob("deepspeed/*model*"))
    forge(hostile, states, {**torch.load(states, weights_only=False), "canary": Canary(canary)})

    shown = bytelm("train", tmp_path / "run.yaml", "--out", run, "--resume").stdout
    assert f"refused {newest}: deepspeed/" in shown
    assert f"refused {hostile}: deepspeed/{states.name} would run posix.mkdir" in shown
    assert f"resumed from {whole}" in shown
    assert not canary.exists()
    assert [line["loss"] for line in metrics(run)] == expected
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert names == {*KEPT, "latest", *(f"refused-{name}" for name in KEPT[2:])}

    torch.load(
        run / "checkpoints" / f"refused-{KEPT[2]}/deepspeed" / states.name, weights_only=False
    )
    assert canary.exists(), "the canary works"


def test_a_run_never_goes_back_to_zero_by_itself(run: Path, tmp_path: Path) -> None:
    for name in KEPT:
        remove(run / "checkpoints" / name / CHECKPOINT_MANIFEST, random.Random(0))
    with pytest.raises(DamageError, match="never goes back to step 0 by itself"):
        run_folder.newest_usable(run, run_folder.damage_outside_tensors)
    resume = ("train", tmp_path / "run.yaml", "--out", run, "--resume", "--allow-fresh-start")
    assert f"{KEPT[0]}/{CHECKPOINT_MANIFEST} cannot be read" in bytelm(*resume, status=1).stderr
    shutil.rmtree(run / "checkpoints")
    assert "add --allow-fresh-start" in bytelm(*resume[:-1], status=2).stderr
    assert "has no checkpoint yet: starting at step 0" in bytelm(*resume).stdout
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))


def test_pickles_that_torch_cannot_check_are_refused(run: Path) -> None:
    folder = run / "checkpoints" / KEPT[-1]
    path = next(folder.glob("deepspeed/*optim*"))
    torch.save({"a": 1}, path, _use_new_zipfile_serialization=False)
    forge(folder, folder / "deepspeed" / "more.pt", {"b": 2})
    assert "cannot" not in (cause := full_damage(folder) or "")
    assert "is no file of torch.save that can be checked" in cause


def test_a_full_disk_ends_the_run_and_leaves_the_earlier_checkpoint(
    mixed_set: ShardSet, tmp_path: Path
) -> None:
    """Two ranks; the disk is full halfway through the second checkpoint."""
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=6, global_batch=2, checkpoint_every=2
    )
    library = tmp_path / "disk_full.so"
    source = Path(__file__).parents[1] / "helpers" / "disk_full.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    run, mark = tmp_path / "run", str(tmp_path)
    full = {
        "LD_PRELOAD": str(library),
        "FULL_DISK_FOLDER": "/checkpoints/",
        "FULL_DISK_BYTES": "600000",
        MARK: mark,
    }
    ended = subprocess.run(
        command("train", config, "--out", run, "--processes", 2),
        env={**environment(), **full},
        capture_output=True,
        text=True,
        check=False,
    )
    wait_until_gone(marked(mark), END_SECONDS)
    assert ended.returncode == 1
    assert ended.stderr.count("the checkpoint of step 4 could not be written") == 1
    assert "No space left on device" in ended.stderr
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step-00000002", "latest"}
    assert full_damage(run / "checkpoints" / "step-00000002") is None


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_latest_never_names_an_incomplete_checkpoint(mixed_set: ShardSet, tmp_path: Path) -> None:
    """50 times, a rank is stopped at a random moment of a save, then killed."""
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=500, global_batch=2, checkpoint_every=1
    )
    named = 0
    for attempt in range(50):
        rng = random.Random(attempt)
        run, mark = tmp_path / f"run-{attempt}", f"{tmp_path}-{attempt}"
        process = subprocess.Popen(
            command("train", config, "--out", run, "--processes", 2),
            env={**environment(), MARK: mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        try:
            number = rng.randint(1, 4)
            while not list((run / "checkpoints").glob(f".tmp-step-{number:08d}")):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.1))
            victim = rng.choice(sorted(children(process.pid)))
            os.kill(victim, signal.SIGSTOP)
            time.sleep(0.3)
            os.kill(victim, signal.SIGKILL)
            assert process.wait(END_SECONDS) == 1, process.stderr.read()
            wait_until_gone(marked(mark), END_SECONDS)
        finally:
            kill_marked(mark)
        latest = run / "checkpoints" / "latest"
        if latest.exists():
            named += 1
            assert full_damage(latest.with_name(latest.read_text())) is None
        shutil.rmtree(run)
    assert named > 10
