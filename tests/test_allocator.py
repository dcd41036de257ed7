"""Freed memory stays with the process."""

import subprocess
import sys

SOURCE = """
import resource, sys
from bytelm.pipelines.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 24)  # 64 MiB
before = faults()
for _ in range(4):
    torch.ones(1 << 24)
print(faults() - before)
"""


def _faults(how: str) -> int:
    command = [sys.executable, "-c", SOURCE, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_the_next_tensor_takes_the_pages_of_the_last() -> None:
    pages = 4 * (1 << 26) // 4096
    assert _faults("keep") < pages / 100 < pages / 2 < _faults("leave")
