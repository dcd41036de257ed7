"""`keep_freed_memory` makes the process reuse the pages of freed tensors."""

import subprocess
import sys

SOURCE = """
import resource, sys
from bytelm.pipelines.runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import torch
def faults_of(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(1 << 24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults_of(24)  # small remainders pin the first ones
print(faults_of(8))
"""


def _faults(how: str) -> int:
    command = [sys.executable, "-c", SOURCE, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_the_next_tensor_takes_the_pages_of_the_last() -> None:
    pages = 8 * (1 << 26) // 4096
    assert _faults("keep") < pages / 20 < pages / 2 < _faults("leave")
