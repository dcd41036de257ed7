"""SIGKILL of a run that uploads its checkpoints to an S3 store that fails at times: it goes on from
the newest whole checkpoint of its folder and the store, as if it had not been killed."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from helpers.commands import bytelm, command, environment, write_config
from helpers.object_store import ObjectStore, object_store
from helpers.processes import MARK, kill_marked, marked, wait_until_gone

from bytelm.pipelines.checkpoints.manifest import checkpoint_damage
from bytelm.pipelines.checkpoints.remote_run import fetch_newest
from bytelm.pipelines.checkpoints.run_folder import checkpoint_folders
from bytelm.pipelines.shards.reader import ShardSet

KILLS = 20
STEPS = 60
SIZES = {"steps": STEPS, "global_batch": 2, "checkpoint_every": 4, "keep_last": 2}
END_SECONDS = 60.0


def step_in_folder(run: Path) -> int:
    """The step of the newest whole checkpoint in a run's folder; 0 without one."""
    folders = checkpoint_folders(run)
    return next((step for step, path in folders if not checkpoint_damage(path, lambda _: True)), 0)


def step_in_store(url: str) -> int:
    """The step of the newest checkpoint at a URL, 0 without one; each that has a manifest must
    agree with it."""
    store = fsspec.filesystem("s3", use_listings_cache=False)
    manifests = [name for name in store.find(url) if name.endswith("/manifest.json")]
    for name in manifests:
        folder = name.removesuffix("/manifest.json")
        for path, entry in json.loads(store.cat(name))["files"].items():
            assert hashlib.sha256(store.cat(f"{folder}/{path}")).hexdigest() == entry["sha256"]
    return max((int(name.split("/")[-2].removeprefix("step-")) for name in manifests), default=0)


def losses(run: Path) -> dict[int, float]:
    """Losses by step; the last line may be cut off by a kill."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


@dataclass
class Session:
    """A command that trains a run until it ends or is killed with all its processes."""

    config: Path
    run: Path

    def train(self, is_moment: Callable[[], bool], delay: float) -> bool:
        """Train; returns whether it was killed, `delay` seconds after a moment. Its end has to be a
        success."""
        mark, resume = str(self.run), ("--resume", "--allow-fresh-start")
        with open(self._output, "w") as output:
            process = subprocess.Popen(
                command("train", self.config, "--out", self.run, *resume),
                env={**environment(), MARK: mark},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                while process.poll() is None and not is_moment():
                    time.sleep(0.001)
                time.sleep(delay)
            finally:
                kill_marked(mark)
                status = process.wait(END_SECONDS)
                wait_until_gone(marked(mark), END_SECONDS)
        assert status in (0, -signal.SIGKILL), self._output.read_text()
        return status != 0

    def resumed_step(self) -> int | None:
        """The step that the command went on from; None if it has not said so."""
        text = self._output.read_text()
        if "has no checkpoint yet" in text:
            return 0
        _, found, rest = text.partition(f"resumed from {self.run}/checkpoints/step-")
        return int(rest[:8]) if found else None

    @property
    def _output(self) -> Path:
        return self.run.with_suffix(".txt")


@dataclass
class Campaign:
    """Runs that are killed at random moments, and what was seen of them."""

    store: ObjectStore
    expected: dict[int, float]
    """Losses of the undisturbed run."""
    kills_at_writes: int = 0
    kills_at_times: int = 0
    from_url: int = 0
    """Starts from a checkpoint that the store alone had."""
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def kills(self) -> int:
        return self.kills_at_writes + self.kills_at_times

    def run_to_its_end(self, config: Path, run: Path, url: str) -> None:
        """Train and kill until a command reaches the last step. Half of the kills cost the folder
        too: the run goes on elsewhere."""
        session = Session(config, run)
        is_killed, local, remote = True, 0, 0
        while is_killed:
            is_killed = self._train(session)
            resumed = session.resumed_step()
            assert resumed in (None, max(local, remote))
            self.from_url += remote > local and resumed == remote
            assert losses(run).items() <= self.expected.items()
            local, remote = step_in_folder(run), step_in_store(url)
            if is_killed and self.rng.random() < 0.5:
                shutil.rmtree(run, ignore_errors=True)
                local = 0
        assert local == remote == STEPS

    def _train(self, session: Session) -> bool:
        """Train until the end or a random moment: a write to the store, or a time after the start.
        Returns whether the command was killed."""
        if self.kills == KILLS:
            return session.train(lambda: False, 0)
        if self.rng.random() < 0.3:
            is_killed = session.train(
                lambda: session.resumed_step() is not None, self.rng.uniform(0, 2)
            )
            self.kills_at_times += is_killed
            return is_killed
        last = len(self.store.writes) + self.rng.randint(1, 60)
        is_killed = session.train(lambda: len(self.store.writes) >= last, self.rng.uniform(0, 0.05))
        self.kills_at_writes += is_killed
        return is_killed


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_goes_on_exactly_from_what_is_whole(
    mixed_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 kills, while every seventh write fails."""
    whole = tmp_path / "whole"
    bytelm("train", write_config(tmp_path / "whole.yaml", mixed_set, **SIZES), "--out", whole)
    with object_store(monkeypatch) as store:
        store.failure_share, store.stall_seconds = 0.15, 0.5
        campaign = Campaign(store, losses(whole))
        assert sorted(campaign.expected) == list(range(1, STEPS + 1))
        for number in range(KILLS):
            url, run = f"s3://bucket/runs/{number}", tmp_path / f"run-{number}"
            sizes = {**SIZES, "checkpoint_url": url}
            config = write_config(tmp_path / f"{number}.yaml", mixed_set, **sizes)
            campaign.run_to_its_end(config, run, url)
            fetched = tmp_path / f"fetched-{number}"
            fetch_newest(url, fetched)
            assert_same_weights(fetched, whole)
            if campaign.kills == KILLS:
                break
        assert store.failures > KILLS
    assert campaign.kills == KILLS
    assert campaign.kills_at_writes >= KILLS // 3, "kills interrupt uploads"
    assert campaign.from_url >= KILLS // 4, "runs go on from the URL alone"


def assert_same_weights(run: Path, other: Path) -> None:
    """Final weights, to the last bit."""
    path = Path("checkpoints", f"step-{STEPS:08d}", "model", "model.safetensors")
    ours, others = (safetensors.torch.load_file(folder / path) for folder in (run, other))
    assert ours.keys() == others.keys()
    assert all(torch.equal(ours[name], others[name]) for name in ours)
