"""The recipes in examples/cluster: each parses, and `bytelm` takes the options that it gives."""

from __future__ import annotations

import ast
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from bytelm.pipelines.cli.main import build_parser

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch")])
ARGUMENTS = {"$1": "run.yaml", "$2": "runs/first", "${@:3}": None}
"""Values for a script's own arguments; None for those that the shell leaves out."""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def containers(value: Any) -> Iterator[dict[str, Any]]:
    """Every container of a Kubernetes object."""
    if isinstance(value, dict):
        yield from value.get("containers", [])
        for inner in value.values():
            yield from containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from containers(inner)


def commands_of_script(text: str) -> list[list[str]]:
    """The commands of a shell script that start `bytelm`, as words, with sample arguments."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if "bytelm train" in line]
    return [
        [w for w in (ARGUMENTS.get(word, word) for word in line) if w] for line in words if line
    ]


def parse_bytelm(words: list[str]) -> Any:
    """The options of the `bytelm` command within a command line; checks torchrun's before it."""
    if "torchrun" in words[:2]:
        words = words[words.index("torchrun") + 1 :]
        launched = get_args_parser().parse_args(words)
        assert (launched.module, launched.training_script) == (True, "bytelm")
        words = launched.training_script_args
    else:
        words = words[words.index("bytelm") + 1 :]
    return build_parser().parse_args(words)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_shell(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_torchrun_and_bytelm_take_the_options_of_the_script(monkeypatch: Any) -> None:
    (words,) = commands_of_script((CLUSTER / "torchrun.sh").read_text())
    for name, value in {"$NODES": "1:2", "$PROCESSES": "8"}.items():
        words = [value if word == name else word for word in words]
    words = [word.replace("${RESTARTS:-3}", "3").replace("${GRACE:-300}", "9") for word in words]
    options = parse_bytelm(words)
    assert options.resume
    assert options.allow_fresh_start


@pytest.mark.parametrize("name", ["kubernetes-job.yaml", "kubernetes-jobset.yaml"])
def test_bytelm_takes_the_options_of_a_kubernetes_recipe(name: str) -> None:
    (recipe,) = documents(name)
    (container,) = containers(recipe)
    options = parse_bytelm([*container["command"], *container["args"]])
    assert options.resume
    assert options.allow_fresh_start
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert any(str(options.out).startswith(f"{path}/") for path in mounts)


def test_the_jobset_meets_at_its_first_pod() -> None:
    """A pod's name is that of the JobSet, the job, and two indexes; its domain the JobSet's."""
    (recipe,) = documents("kubernetes-jobset.yaml")
    name, (job,) = recipe["metadata"]["name"], recipe["spec"]["replicatedJobs"]
    (container,) = containers(recipe)
    launched = get_args_parser().parse_args(container["args"])
    host, port = launched.rdzv_endpoint.split(":")
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert launched.nnodes.split(":")[1] == str(spec["completions"]) == str(spec["parallelism"])
    pod = spec["template"]["spec"]
    assert launched.shutdown_timeout < pod["terminationGracePeriodSeconds"]


def test_the_skypilot_task_runs_the_script_for_torchrun() -> None:
    (task,) = documents("skypilot.yaml")
    last = shlex.split(task["run"].strip().splitlines()[-1])
    assert (CLUSTER.parents[1] / last[0]).samefile(CLUSTER / "torchrun.sh")
    assert all(argument.startswith("/runs/") for argument in last[1:])
    assert "/runs" in task["file_mounts"]
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True)


def test_bytelm_takes_what_ray_train_gives_it() -> None:
    tree = ast.parse((CLUSTER / "ray_train.py").read_text())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    flags = ["--out", "--resume", "--allow-fresh-start"]
    assert texts.issuperset(flags)
    build_parser().parse_args(["train", "run.yaml", flags[0], "run", *flags[1:]])
