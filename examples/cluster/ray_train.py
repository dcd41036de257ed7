"""A run on a Ray cluster: Ray Train starts the workers, and each runs `bytelm train` as a rank.

    pip install 'ray[train]'
    python examples/cluster/ray_train.py run.yaml /shared/runs/first --workers 16 --gpu

All workers must see the config, the sets and the run's folder. When a worker fails, Ray starts all
of them again, and the run resumes from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train(loop_config: dict[str, Any]) -> None:
    """Run one rank, with the environment that torchrun would give it."""
    context = ray.train.get_context()
    environment = {
        "RANK": str(context.get_world_rank()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "MASTER_ADDR": os.environ["MASTER_ADDR"],
        "MASTER_PORT": loop_config["port"],
    }
    # The rank ends with its worker, which Ray may kill: it would keep the run locked.
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "bytelm", "train"]
    command += loop_config["arguments"]
    # Paths in a config are relative to the folder that the command is given in.
    folder = loop_config["folder"]
    subprocess.run(command, env={**os.environ, **environment}, cwd=folder, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run bytelm train on a Ray cluster.")
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("run", help="folder of the run, which all workers see")
    parser.add_argument("--workers", type=int, required=True, help="ranks, one for each GPU")
    parser.add_argument("--gpu", action="store_true", help="give each worker a GPU")
    parser.add_argument("--port", default="29500", help="free TCP port of the first worker")
    parser.add_argument("--max-failures", type=int, default=10, help="restarts by Ray")
    options, further = parser.parse_known_args()
    arguments = [os.path.abspath(options.config), "--out", os.path.abspath(options.run)]
    arguments += ["--resume", "--allow-fresh-start", *further]
    loop_config = {"arguments": arguments, "port": options.port, "folder": os.getcwd()}
    trainer = TorchTrainer(
        train,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=options.max_failures)),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
