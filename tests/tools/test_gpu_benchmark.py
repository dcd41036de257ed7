"""The benchmark of a GPU: its jobs, its time, and every part at tiny sizes on the CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import benchmark_jobs
from helpers.commands import environment

from bytelm.tools.benchmarks import gpu
from bytelm.tools.benchmarks.gpu_parts import training
from bytelm.tools.benchmarks.gpu_parts.scale import GPU, SMOKE
from bytelm.tools.benchmarks.jobs import Job, run_jobs
from bytelm.tools.benchmarks.measure import Figure

JOBS = {job.function.__name__: job for part in gpu.parts(SMOKE) for job in part.jobs}
"""The last job of each kind."""
REAL_COMMANDS = {"run_figures", "feature_figures"}
"""Kinds that take half a minute also at tiny sizes."""
WITH_PEERS = {"compile_seconds", "decoding_figures", "peer_steps"}
"""Kinds that run the code of others too."""


def test_figures_of_jobs_arrive_from_processes_side_by_side(capfd: pytest.CaptureFixture) -> None:
    jobs = [Job(name, benchmark_jobs.measure_two, (name,)) for name in ("a", "b")]
    figures = list(run_jobs(jobs, 60))
    assert sorted(f.name for f in figures) == ["a/first", "a/second", "b/first", "b/second"]
    assert "prints" not in capfd.readouterr().out  # the figures' lines stay whole


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (Job("error", benchmark_jobs.raise_an_error), "RuntimeError: out of memory"),
        (Job("death", benchmark_jobs.die), "the process died"),
    ],
    ids=["error", "death"],
)
def test_a_job_that_fails_keeps_its_first_figures_and_says_why(job: Job, error: str) -> None:
    first, failed = run_jobs([job], 60)
    assert first == Figure(f"{job.name}/first", 1.0, "s")
    assert failed.name == f"{job.name}/failed"
    assert failed.details == {"error": error}


def test_a_job_that_hangs_is_cut_with_all_that_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    job = Job("hang", benchmark_jobs.hang_with_a_child, (pid_file,))
    figures = list(run_jobs([job], 3))
    assert [figure.name for figure in figures] == ["hang/first", "hang/failed"]
    assert figures[1].details["error"] == "not through after 3 s"
    assert not is_running(int(pid_file.read_text()))


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie that waits to be reaped by init."""
    for _ in range(100):
        try:
            status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if status == "Z":
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("kind", sorted(JOBS.keys() - REAL_COMMANDS))
def test_every_kind_of_job_gives_figures_at_tiny_sizes(kind: str) -> None:
    if kind in WITH_PEERS and find_spec("mblm") is None:
        pytest.skip("the peers are not installed: pip install 'bytelm[bench]'")
    job = JOBS[kind]
    figures = list(job.function(*job.arguments))
    assert figures
    for figure in figures:
        assert math.isfinite(figure.value)
        json.dumps(figure.as_dict())


def test_all_parts_are_short_and_named_once() -> None:
    names = [part.name for part in gpu.parts(GPU)]
    assert len(set(names)) == len(names)
    jobs = [job.name for part in gpu.parts(GPU) for job in part.jobs]
    assert len(set(jobs)) == len(jobs)
    assert gpu.TOTAL_SECONDS < 8 * 60
    # Every kind of part is in the smoke test too.
    assert {job.function.__name__ for part in gpu.parts(GPU) for job in part.jobs} == JOBS.keys()


def test_ours_and_a_peer_are_compared_at_their_better_speeds() -> None:
    speeds = {
        "train/16m/bytelm/eager": 2.0,
        "train/16m/bytelm/compiled": 6.0,
        "train/16m/bytelm/compiled/codec-features": 5.0,
        "train/16m/mblm/eager": 4.0,
        "train/16m/mblm/compiled": 3.0,
    }
    figures = {name: Figure(name, value, "bytes/s") for name, value in speeds.items()}
    plain, with_features = training.comparisons(figures, size="16m", peer="mblm")
    assert (plain.name, plain.value, plain.reference) == ("train/16m/beside-mblm", 6.0, 4.0)
    assert with_features.name == "train/16m/beside-mblm/codec-features"
    assert with_features.ratio == 1.25
    assert not list(training.comparisons(figures, size="16m", peer="megabyte-pytorch"))


def test_the_command_prints_the_environment_first_and_the_status_of_failures() -> None:
    result = run_gpu("--smoke", "--only", "environment")
    assert result.returncode == 0, result.stderr
    first, product = map(json.loads, result.stdout.splitlines())
    assert first["name"] == "environment"
    assert {"commit", "versions", "machine"} <= first.keys()
    assert product["name"] == "environment/product"
    assert product["value"] > 0


def test_without_time_every_part_fails_by_name() -> None:
    result = run_gpu("--smoke", "--only", "environment", "--seconds", "0")
    assert result.returncode == 1
    (failed,) = map(json.loads, result.stdout.splitlines())
    assert failed["name"] == "environment/failed"


def test_without_a_gpu_the_command_names_the_way_out() -> None:
    result = run_gpu()
    assert result.returncode == 2
    assert "--smoke" in result.stderr


def run_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bytelm.tools.benchmarks.gpu", *arguments]
    no_gpu = {**environment(), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=no_gpu)
