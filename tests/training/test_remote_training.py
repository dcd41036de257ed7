"""The commands give the same results on sets behind HTTP, S3 and the Hugging Face hub as on a
folder, also when requests fail."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from helpers.commands import bytelm, metrics, write_config
from helpers.web_server import Web, serving
from moto.server import ThreadedMotoServer

from bytelm.pipelines.shards.format import SET_MANIFEST
from bytelm.pipelines.shards.reader import ShardSet

STEPS = 16
"""Steps of two rows each: more than an epoch of the mixed set."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder for the test, where commands without a config cache shards."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def files(mixed_set: ShardSet) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(mixed_set.location).iterdir()}


@pytest.fixture
def web(files: dict[str, bytes]) -> Iterator[Web]:
    """A server of the mixed set."""
    with serving() as web:
        web.objects |= files
        yield web


@pytest.fixture
def s3(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The location of the mixed set on an S3 server."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = fsspec.filesystem("s3", skip_instance_cache=True)
    bucket.mkdir("bucket")
    bucket.pipe({f"bucket/set/{name}": data for name, data in files.items()})
    yield "s3://bucket/set"
    server.stop()


def losses(config: Path, run: Path, location: str, *options: object) -> list[float]:
    """The losses of a run on a set at a location; the cache is beside the run's folder."""
    cache = run.with_name(f"{run.name}-cache")
    change = [f"data.sets=[{{path: '{location}'}}]", f"data.cache_folder={cache}"]
    sets = [part for value in change for part in ("--set", value)]
    bytelm("train", config, "--out", run, *sets, *options)
    return [line["loss"] for line in metrics(run)]


def test_remote_sets_give_the_losses_of_the_folder(
    mixed_set: ShardSet, web: Web, s3: str, tmp_path: Path
) -> None:
    """To the last digit: over HTTP, over S3, and over HTTP with two workers when every object fails
    once or twice."""
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=STEPS, global_batch=2)
    expected = losses(config, tmp_path / "local", mixed_set.location)
    assert len(expected) == STEPS
    assert losses(config, tmp_path / "http", web.url) == expected
    asked = [name for name in web.asked if not name.startswith("counts-")]
    assert len(set(web.asked) - set(asked)) == 2, "counts of train and val, which are not there"
    assert set(asked) == set(web.objects)
    assert len(asked) == len(web.objects) + asked.count(SET_MANIFEST) - 1, "each once"
    assert losses(config, tmp_path / "s3", s3) == expected

    rng = random.Random(0)
    for name in web.objects:
        failures = ["500", "503", "short", "clean short", "wrong"]
        # The manifest's hash is unknown to the reader: only a wrong length can be detected.
        detectable = 3 if name == SET_MANIFEST else 5
        web.script[name].extend(rng.sample(failures[:detectable], rng.randint(1, 2)))
    workers = ("--set", "data.workers=2")
    assert losses(config, tmp_path / "flaky", web.url, *workers) == expected
    assert not any(web.script.values()), "every failure has occurred"


def test_a_cache_that_is_too_small_is_refused_in_a_line(
    mixed_set: ShardSet, web: Web, tmp_path: Path
) -> None:
    """The cache is smaller than one shard, or a byte smaller than the shards in use at once. With
    that byte the run succeeds, also after the refused ones."""
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=STEPS, eval_every=STEPS // 2)
    run, shards = tmp_path / "run", mixed_set.split("train")
    one = max(shard.size for shard in shards)
    two_windows, val = (
        sorted(shard.size + shard.index_size for shard in mixed_set.split(split))
        for split in ("train", "val")
    )
    enough = sum(two_windows[-4:]) + sum(val)
    assert enough < sum(two_windows) + sum(val)

    def options(limit: int) -> list[str]:
        values = (f"data.cache_gb={limit / 1e9}", f"data.cache_folder={tmp_path / 'cache'}")
        change = (*values, f"data.sets=[{{path: '{web.url}'}}]", "data.workers=2")
        return [part for value in change for part in ("--set", value)]

    for limit in (one - 1, enough - 1):
        for command in (("train", config, "--out", run), ("plan", config)):
            error = bytelm(*command, *options(limit), status=2).stderr
            assert f"a limit of {limit:,} bytes" in error
            assert error.count("\n") == 1
    bytelm("train", config, "--out", run, *options(enough))


def test_evaluate_and_inspect_take_a_url(
    mixed_set: ShardSet, web: Web, tmp_path: Path, home: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=1)
    bytelm("train", config, "--out", tmp_path / "run")
    model = tmp_path / "model"
    bytelm("export", tmp_path / "run", "--out", model)
    local, remote = (
        json.loads(bytelm("evaluate", model, "--data", place, "--json").stdout)
        for place in (mixed_set.location, web.url)
    )
    assert {document["set"] for document in remote["documents"]} == {web.url}
    for scores, place in ((local, mixed_set.location), (remote, web.url)):
        assert scores["about"].pop("sets") == [{"path": place, "root": mixed_set.root}]
        del scores["about"]["date"]
        for document in scores["documents"]:
            del document["set"]
    assert local == remote
    shown = bytelm("inspect", web.url, "--verify").stdout
    assert f"{len(mixed_set.shards)} of {len(mixed_set.shards)} shards whole" in shown
    assert mixed_set.root in shown
    cached = list((home / ".cache/bytelm/shards").glob("?" * 64))
    assert len(cached) == 2 * len(mixed_set.shards) + 1  # tars, indexes, a part of the manifest

    damaged = next(name for name in web.objects if name.endswith(".tar"))
    web.objects[damaged] = b"!" + web.objects[damaged][1:]
    for path in (home / ".cache/bytelm/shards").glob("?" * 64):
        path.unlink()
    shown = bytelm("inspect", web.url, "--verify", status=1).stdout
    assert f"{web.url}/{damaged}" in shown


def test_a_set_on_the_hub(
    mixed_set: ShardSet, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client asks for the repository's description, then for each file by name."""
    web.objects["set"] = json.dumps({"id": "someone/set"}).encode()
    monkeypatch.setenv("HF_ENDPOINT", web.url.removesuffix("/set"))
    place = "hf://datasets/someone/set"
    first, second = (shard.name for shard in mixed_set.split("train")[:2])
    web.script[first].extend(["500", "wrong"])
    web.script[second].append("clean short")
    shown = bytelm("inspect", place, "--verify", "--extract", 1, "--out", tmp_path / "files").stdout
    assert f"{len(mixed_set.shards)} of {len(mixed_set.shards)} shards whole" in shown
    assert mixed_set.root in shown
    assert len(list((tmp_path / "files").iterdir())) == 3
    assert not any(web.script.values())
    assert [web.asked.count(name) for name in (first, second)] == [3, 2]
    error = bytelm("inspect", "hf://datasets/someone/other", status=2).stderr
    assert error.startswith("bytelm inspect: no shard set at hf://datasets/someone/other")
