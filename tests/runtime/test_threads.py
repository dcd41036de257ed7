"""How OpenMP's threads wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bytelm.pipelines.runtime.threads import SPINS, USERS_VARIABLES, wait_briefly

COMMAND = """
import os, sys
from bytelm.pipelines.cli.main import main
sys.argv = ["bytelm", "plan", "no-such-file.yaml"]
main()
print(os.environ["GOMP_SPINCOUNT"])
"""


def test_threads_wait_briefly_by_default() -> None:
    environment: dict[str, str] = {}
    wait_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": SPINS}


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_a_choice_of_the_users_stays(name: str) -> None:
    environment = {name: "x"}
    wait_briefly(environment)
    assert environment == {name: "x"}


def test_a_command_chooses_before_torch_is_loaded() -> None:
    is_late = "import sys, bytelm.pipelines.cli.main; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", is_late], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in USERS_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == f"{SPINS}\n"
